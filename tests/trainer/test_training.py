"""Runs over a small world: they learn, repeat, resume and survive kill -9 with the same result."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from memory_store import upkeep
from memory_store.errors import ConfigError, MemoryNotFound
from memory_store.manifest import generations
from memory_store.storage import Storage
from memory_store.upkeep import pins, sweep, verify_memory
from trainer import checkpointer
from trainer.alone import training_alone
from trainer.ask import Answerer
from trainer.checkpoint import newest_checkpoint
from trainer.checkpointer import pin_name
from trainer.config import RunConfig
from trainer.encoders.registry import make_encoder
from trainer.evaluation import Evaluation, evaluate
from trainer.loop import train
from trainer.metrics import of_mean, read_metrics, wilson
from trainer.run import load_run, open_run

MakeConfig = Callable[..., RunConfig]


def _values(config: RunConfig) -> list[dict[str, object]]:
    """The metrics of a run without its timings."""
    return [{k: v for k, v in line.items() if k != "timing"} for line in read_metrics(Path(config.run_dir))]


def _facts_of(config: RunConfig) -> tuple[object, ...]:
    """What a run ended with: the model's fingerprint and every metric."""
    checkpoint = newest_checkpoint(Storage(config.run_dir))
    assert checkpoint is not None
    return checkpoint.fingerprint, checkpoint.step, _values(config)


def _shown(found: Evaluation) -> tuple[object, ...]:
    return found.overall, found.relations, found.wrong


@pytest.mark.parametrize("encoder", ["ngram", "gru"])
def test_a_run_learns_to_answer_about_people_and_words_it_was_not_asked(run_config: MakeConfig, encoder: str) -> None:
    config = run_config(model={"encoder": encoder}, train={"epochs": 8})
    result = train(config)
    found = evaluate(config.run_dir)
    assert result.steps == 8 * 15
    assert found.overall.path_accuracy >= 0.95
    assert found.overall.path_accuracy == found.overall.fact_accuracy
    assert found.overall.recall >= found.overall.path_accuracy
    assert found.missing == 0
    assert sum(score.questions for score in found.relations.values()) == found.overall.questions
    assert len(found.wrong) == round((1 - found.overall.path_accuracy) * found.overall.questions)
    assert "all relations" in found.table()
    assert "all relations" in found._repr_html_()
    assert len(repr(found)) < 200


def test_answers_name_the_fact_that_was_read(run_config: MakeConfig) -> None:
    config = run_config(train={"epochs": 6})
    train(config)
    with Answerer(config.run_dir) as answerer:
        read = answerer.ask("where was Jörg O'Hara born?", k=4)
        assert "jörg o&#x27;hara" in read._repr_html_()
        assert repr(answerer).startswith("Answerer(OpenRun(")
        best, *others = read
        assert (best.subject, best.relation) == ("jörg o'hara", "people/person/place_of_birth")
        assert best.objects == best.object_ids
        assert abs(best.weight + sum(other.weight for other in others) - 1) < 1e-6
        assert all(best.score >= other.score for other in others)
        with pytest.raises(ConfigError, match="empty text"):
            answerer.ask("  ")
        for several in (["who", "where"], None, 5):
            with pytest.raises(ConfigError, match=r"one question as text, found .*; ask_many takes several"):
                answerer.ask(several)  # type: ignore[arg-type]
        for wrong in ("who", 5, ["who", None]):
            with pytest.raises(ConfigError, match=r"expected (a list of questions|questions as texts), found"):
                answerer.ask_many(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="k as a whole number"):
            answerer.ask("who", k=2.5)  # type: ignore[arg-type]
        assert len(answerer.ask_many(["who is ann smith married to", "hello"], k=2)) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_run_on_any_number_of_shards(run_config: MakeConfig, threads: int) -> None:
    facts = []
    for shards in (1, 3):
        config = run_config(f"run{shards}", f"memory{shards}", train={"threads": threads, "max_steps": 14})
        config = replace(config, memory=replace(config.memory, shards=shards))
        train(config)
        facts.append(_facts_of(config))
    assert facts[0] == facts[1]


def test_rows_read_by_many_questions_get_the_same_gradient_from_any_number_of_threads_every_time(
    run_config: MakeConfig,
) -> None:
    # wide rows and large batches: torch shares the work among its threads only when there is enough of it
    sections = {
        "model": {"entity_dim": 128, "relation_dim": 128, "feature_bits": 12, "hidden": 64, "reader_hidden": 64},
        "train": {"threads": 2, "batch_questions": 256, "max_steps": 4, "epochs": 4},
    }
    facts = []
    for name in ("a", "b", "c"):
        config = run_config(name, f"m{name}", **sections)
        train(config)
        facts.append(_facts_of(config))
    assert facts[0] == facts[1] == facts[2]


def test_members_are_trained_alone_the_first_of_two_is_what_it_would_be_by_itself(run_config: MakeConfig) -> None:
    alone = run_config("alone", "m1")
    both = run_config("both", "m2", model={"members": 2})
    train(alone)
    assert train(both).steps == 2 * 30
    one, two = load_run(alone.run_dir)[2], load_run(both.run_dir)[2]
    assert two.fingerprint(0) == one.fingerprint() == one.fingerprint(0)
    assert len({two.fingerprint(0), two.fingerprint(1), two.fingerprint()}) == 3
    assert evaluate(both.run_dir).overall.path_accuracy >= evaluate(alone.run_dir).overall.path_accuracy - 0.05


def test_the_network_that_reads_words_learns_at_a_rate_of_its_own(run_config: MakeConfig) -> None:
    config = run_config(train={"max_steps": 3, "reader_rate": 0.0})
    train(config)
    fresh, trained = make_encoder(config.model, config.seed), load_run(config.run_dir)[2]
    moved = {
        name: not torch.equal(before, after)
        for (name, before), after in zip(fresh.named_parameters(), trained.parameters(), strict=True)
    }
    assert not any(changed for name, changed in moved.items() if ".reader." in name)
    assert any(changed for name, changed in moved.items() if ".reader." not in name)


def test_another_seed_gives_another_run(run_config: MakeConfig) -> None:
    configs = [run_config("a", "ma", train={"max_steps": 3}), run_config("b", "mb", seed=1, train={"max_steps": 3})]
    for config in configs:
        train(config)
    assert _facts_of(configs[0])[0] != _facts_of(configs[1])[0]


@pytest.mark.parametrize(("members", "fails_at"), [(1, 16), (2, 34), (2, 50)])
def test_an_interrupted_run_resumes_to_the_result_of_an_undisturbed_one(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, members: int, fails_at: int
) -> None:
    model = {"members": members}
    whole, stopped = run_config("whole", "m1", model=model), run_config("stopped", "m2", model=model)
    train(whole)
    import trainer.loop

    calls = {"left": fails_at}

    def failing(*args: object, **kwargs: object) -> object:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt
        return original(*args, **kwargs)  # type: ignore[arg-type]

    original = trainer.loop.training_step
    monkeypatch.setattr(trainer.loop, "training_step", failing)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    result = train(stopped, resume=True)
    assert 0 < result.resumed_from < fails_at
    assert _facts_of(stopped) == _facts_of(whole)
    assert train(stopped, resume=True).resumed_from == result.steps


def test_a_run_that_dies_while_it_writes_a_checkpoint_keeps_what_the_one_in_force_names(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config()
    original = checkpointer.save_checkpoint

    def dies(storage: Storage, *args: object, **kwargs: object) -> object:
        if newest_checkpoint(storage) is not None:
            raise KeyboardInterrupt
        return original(storage, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpointer, "save_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    sweep(config.memory.url)
    with open_run(config.run_dir) as run:
        assert run.memory.generation == run.checkpoint.generation
    monkeypatch.setattr(checkpointer, "save_checkpoint", original)
    result = train(config, resume=True)
    assert list(pins(Storage(config.memory.url)).values()) == [result.generation]


SCRIPT = "import sys; from trainer.config import load_config; from trainer.loop import train; "
SCRIPT += "train(load_config(sys.argv[1]), resume=True)"


def test_kill_9_at_any_instant_and_resume_gives_the_same_result_and_a_memory_that_verifies(
    run_config: MakeConfig, tmp_path: Path
) -> None:
    whole, killed = run_config("whole", "m1"), run_config("killed", "m2")
    train(whole)
    from trainer.config import save_config

    save_config(killed, tmp_path / "killed.toml")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed.toml")]
    progress = [tmp_path / "killed" / "config.toml", tmp_path / "killed" / "checkpoints" / "latest.json"]
    for awaited in progress:  # once before the first checkpoint, once after it
        process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
        deadline_s = time.monotonic() + 120
        while not awaited.exists() and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert awaited.exists()
    train(killed, resume=True)
    assert _facts_of(killed) == _facts_of(whole)
    assert verify_memory(killed.memory.url).ok


def test_a_run_keeps_what_its_checkpoint_names_and_what_others_made_and_sweeps_the_rest(run_config: MakeConfig) -> None:
    config = run_config()
    result = train(config)
    storage = Storage(config.memory.url)
    ingested = 1
    assert generations(storage) == [ingested, result.generation]
    assert list(pins(storage).values()) == [result.generation]


def test_triples_share_the_target_and_are_judged_by_their_path(
    run_config: MakeConfig, ingest_world: Callable[..., str]
) -> None:
    config = run_config(data={**vars(run_config().data), "grouping": "triple"}, train={"epochs": 6})
    train(config)
    assert evaluate(config.run_dir).overall.path_accuracy > 0.9


@pytest.mark.parametrize("candidates", ["per_question", "full"])
def test_other_candidate_rules_train_as_well(run_config: MakeConfig, candidates: str) -> None:
    config = run_config(train={"epochs": 6, "candidates": candidates})
    train(config)
    assert evaluate(config.run_dir).overall.path_accuracy > 0.9


def test_a_run_directory_is_not_overwritten_and_other_settings_do_not_resume_it(run_config: MakeConfig) -> None:
    config = run_config(train={"max_steps": 3})
    train(config)
    with pytest.raises(ConfigError, match="--resume"):
        train(config)
    with pytest.raises(ConfigError, match="other settings"):
        train(run_config(train={"max_steps": 4}), resume=True)


def test_a_second_process_is_refused_while_the_first_one_trains(run_config: MakeConfig) -> None:
    config = run_config(train={"max_steps": 1})
    with training_alone(Path(config.run_dir)), pytest.raises(ConfigError, match=f"found process {os.getpid()} on"):
        train(config, resume=True)
    assert [path.name for path in Path(config.run_dir).iterdir()] == ["train.lock"]
    train(config)


def test_the_pin_of_a_run_has_a_valid_name_whatever_its_folder_is_called(run_config: MakeConfig) -> None:
    folders = ["x" * 250, "x" * 249 + "y", "bären", "b\u00e4ren", "..."]
    names = {pin_name(run_config(name).run_dir) for name in folders}
    assert len(names) == 4
    for name in names:
        assert upkeep._pin_path(f"{name}-serving-next")


def test_a_missing_memory_without_sources_is_said_so(run_config: MakeConfig) -> None:
    config = run_config(data={"questions": "builtin:geonames", "facts": []})
    with pytest.raises(MemoryNotFound):
        train(config)


def test_an_untrained_directory_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hmn train"):
        evaluate(tmp_path)


def test_wilson_intervals_are_those_of_the_textbook() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == 1.0


def test_the_interval_of_a_mean_narrows_with_the_questions_and_holds_the_mean() -> None:
    few, many = np.array([0.0, 1.0, 0.5, 0.5]), np.tile([0.0, 1.0, 0.5, 0.5], 100)
    assert 0.0 <= of_mean(few)[0] < of_mean(many)[0] < 0.5 < of_mean(many)[1] < of_mean(few)[1] <= 1.0
    assert of_mean(np.array([1.0])) == (0.0, 1.0)
