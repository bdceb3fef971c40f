"""The engine over a trained run: answers, and rollouts that no answer notices."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from deploy.serve.engine import Asked, RunEngine, Wanted
from deploy.serve.failures import Refused
from deploy.serve.rollout import Move
from deploy.serve.settings import Source
from deploy.serve.source import located
from deploy.serve.writing import Deletion, Upsert
from memory_store.errors import ConfigError, CorruptFile, GenerationNotFound, VersionMismatch
from memory_store.leases import leases
from memory_store.manifest import current_generation
from memory_store.storage import Storage
from memory_store.topk import TopK
from memory_store.upkeep import pins, sweep, verify_memory
from pipeline.embed import embed
from pipeline.facts import fact_id_of
from pipeline.ingest import ingest
from pipeline.stated import StatedFact
from trainer.ask import Answerer
from trainer.config import RunConfig
from trainer.loop import train
from trainer.refresh import FactEmbedder
from trainer.run import load_run
from trainer.settings import build

NAMES = ("ann", "bob", "carla", "dmitri", "eve", "farid")
HEAD = "subject_id\tsubject\trelation\tobject_id\tobject\n"


def run_settings(folder: Path, run: str, seed: int) -> RunConfig:
    return build(
        RunConfig,
        {
            "run_dir": str(folder / run),
            "seed": seed,
            "memory": {"url": str(folder / "memory")},
            "data": {"questions": str(folder / "questions_*.tsv")},
            "model": {"entity_dim": 8, "relation_dim": 8, "feature_bits": 10, "hidden": 8, "reader_hidden": 8},
            "train": {"epochs": 2, "batch_questions": 6, "k": 2, "refresh_every_steps": 2, "threads": 1},
        },
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a moment over six people; it knows little, which is enough here."""
    folder = tmp_path_factory.mktemp("world")
    rows = [f"p{n}\t{name}\tborn_in\tx{n}\ttown {n}" for n, name in enumerate(NAMES)]
    (folder / "facts.tsv").write_text(HEAD + "\n".join(rows) + "\n")
    asked = [f"p{n}\tborn_in\tx{n}\twhere was {name} born" for n, name in enumerate(NAMES)]
    for split in ("train", "valid"):
        lines = ["subject_id\trelation\tobject_id\tquestion", *asked]
        (folder / f"questions_{split}.tsv").write_text("\n".join(lines) + "\n")
    ingest([str(folder / "facts.tsv")], str(folder / "memory"))
    train(run_settings(folder, "run", seed=0))
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder that a test may change."""
    shutil.copytree(trained, tmp_path / "world")
    return tmp_path / "world"


def source_of(place: Path, **changes: object) -> Source:
    return replace(Source(run_dir=str(place / "run"), memory=str(place / "memory"), backend="local"), **changes)  # type: ignore[arg-type]


@pytest.fixture
def engine(place: Path) -> Iterator[RunEngine]:
    started = RunEngine(source_of(place))
    yield started
    started.close()


def add_a_fact(place: Path) -> None:
    """One more person, ingested and embedded by the run's model: two generations."""
    (place / "more.tsv").write_text(HEAD + "z\tzoe\tborn_in\tx\tXanten\n")
    ingest([str(place / "more.tsv")], str(place / "memory"))
    _, _, encoder = load_run(place / "run")
    embed(str(place / "memory"), lambda: FactEmbedder(encoder), fingerprint=encoder.fingerprint(), dim=encoder.dim)


def train_again(place: Path) -> None:
    """Another model over the same memory; its checkpoint is not the run's yet."""
    train(run_settings(place, "other", seed=1))


def publish(place: Path) -> None:
    """The other model becomes the run's newest checkpoint."""
    for file in (place / "other" / "checkpoints").iterdir():
        shutil.copy(file, place / "run" / "checkpoints" / file.name)


def test_the_engine_answers_what_hmn_ask_answers(place: Path, engine: RunEngine) -> None:
    texts = [f"where was {name} born" for name in NAMES]
    batch = engine.ask([Asked(text, 3) for text in texts])
    with Answerer(place / "run", memory=str(place / "memory")) as answerer:
        expected = answerer.ask_many(texts, 3)
    for found, wanted in zip(batch.results, expected, strict=True):
        assert [fact.fact_id for fact in found] == [fact.fact_id for fact in wanted]
        np.testing.assert_allclose([fact.weight for fact in found], [fact.weight for fact in wanted], rtol=1e-5)
    assert batch.generation == engine.status().generation
    assert batch.coverage == 1.0
    assert batch.stages_s.keys() == {"encode", "search", "fetch"}


def test_every_question_of_a_batch_gets_its_own_number_of_facts(engine: RunEngine) -> None:
    batch = engine.ask([Asked("where was ann born", k) for k in (1, 4, 99)])
    assert [len(facts) for facts in batch.results] == [1, 4, len(NAMES)]
    for facts in batch.results:
        assert sum(fact.weight for fact in facts) == pytest.approx(1)
        assert [fact.fact_id for fact in facts] == [fact.fact_id for fact in batch.results[-1][: len(facts)]]


def test_vectors_are_searched_together_and_a_misfit_alone_is_refused(engine: RunEngine) -> None:
    dim = engine.status().dim
    fits, misfit = Wanted(np.ones(dim, np.float32), 2), Wanted(np.ones(dim + 1, np.float32), 2)
    first, refused, second = engine.search([fits, misfit, fits]).results
    assert isinstance(refused, Refused)
    np.testing.assert_array_equal(first[0], second[0])
    assert len(first[0]) == 2
    assert all(isinstance(result, Refused) for result in engine.search([misfit]).results)


def test_new_facts_of_the_same_model_are_rolled_out_and_leased(place: Path, engine: RunEngine) -> None:
    before = engine.status()
    assert engine.roll_out().move is Move.STAY
    add_a_fact(place)
    assert engine.roll_out().move is Move.GENERATION
    after = engine.status()
    assert (after.generation, after.facts) == (before.generation + 2, before.facts + 1)
    assert after.generations_rolled_out == 1
    (batch,) = [engine.ask([Asked("where was zoe born", 1)])]
    assert batch.generation == after.generation
    assert [lease.generations for lease in leases(Storage(str(place / "memory")))] == [(after.generation,)]


def test_a_replica_that_ends_takes_nothing_from_another_and_a_killed_one_leaves_no_pin(
    place: Path, engine: RunEngine
) -> None:
    storage = Storage(str(place / "memory"))
    pinned = pins(storage)
    other = RunEngine(source_of(place))
    assert pins(storage).keys() == pinned.keys() == {name for name in pinned if name.startswith("run-")}
    add_a_fact(place)
    other.close()
    assert engine.status().generation not in sweep(storage).generations
    engine.close()
    assert leases(storage) == ()


def test_facts_that_are_not_embedded_yet_change_nothing(place: Path, engine: RunEngine) -> None:
    (place / "more.tsv").write_text(HEAD + "z\tzoe\tborn_in\tx\tXanten\n")
    ingest([str(place / "more.tsv")], str(place / "memory"))
    assert engine.roll_out().move is Move.STAY


def test_a_model_is_rolled_out_with_the_generation_that_it_embedded(place: Path, engine: RunEngine) -> None:
    before = engine.status()
    train_again(place)
    assert engine.roll_out().move is Move.STAY, "its generation waits for its checkpoint"
    publish(place)
    assert engine.roll_out().move is Move.MODEL
    after = engine.status()
    assert after.encoder != before.encoder
    assert after.generation > before.generation
    batch = engine.ask([Asked("where was ann born", 2)])
    with Answerer(place / "other") as answerer:
        expected = answerer.ask("where was ann born", 2)
    assert batch.encoder == after.encoder
    assert [fact.fact_id for fact in batch.results[0]] == [fact.fact_id for fact in expected]


def test_no_answer_fails_or_mixes_while_generations_and_models_are_rolled_out(
    place: Path, engine: RunEngine, ask_meanwhile: Callable[..., list[tuple[int, str]]]
) -> None:
    models = {engine.status().generation: engine.status().encoder}

    def ask() -> tuple[int, str]:
        batch = engine.ask([Asked(f"where was {name} born", 2) for name in NAMES])
        return batch.generation, batch.encoder

    def roll_out_after(change: Callable[[Path], None]) -> None:
        change(place)
        engine.roll_out()
        models[engine.status().generation] = engine.status().encoder

    seen = ask_meanwhile(ask, [partial(roll_out_after, change) for change in (add_a_fact, train_again, publish)])
    assert len(set(models.values())) == 2
    assert {generation for generation, _ in seen} == set(models)
    assert all(models[generation] == encoder for generation, encoder in seen)


def test_an_answer_whose_generation_went_away_before_its_facts_were_fetched_begins_again(
    place: Path, engine: RunEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_a_fact(place)
    memory = engine._opened.memory
    search: Callable[..., TopK] = memory.search
    generations = []

    def search_then_switch(*arguments: object) -> TopK:
        found = search(*arguments)
        generations.append(found.generation)
        memory.refresh()
        return found

    monkeypatch.setattr(memory, "search", search_then_switch)
    batch = engine.ask([Asked("where was ann born", 2)])
    assert len(generations) == 2
    assert batch.generation == generations[1] == current_generation(Storage(str(place / "memory")))


def test_a_rollout_that_fails_leaves_what_is_served(place: Path, engine: RunEngine) -> None:
    before = engine.status()
    train_again(place)
    publish(place)
    latest = place / "run" / "checkpoints"
    for file in latest.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFile):
        engine.roll_out()
    assert engine.status().failed_rollouts == 1
    assert engine.ask([Asked("where was ann born", 1)]).generation == before.generation


def test_a_generation_that_was_named_stays(place: Path) -> None:
    first = RunEngine(source_of(place))
    generation = first.status().generation
    first.close()
    add_a_fact(place)
    engine = RunEngine(source_of(place, generation=generation))
    assert engine.roll_out().move is Move.STAY
    assert engine.status().generation == generation
    engine.close()


def test_a_closed_engine_refuses(place: Path) -> None:
    engine = RunEngine(source_of(place))
    engine.close()
    with pytest.raises(Refused, match="shutting down"):
        engine.ask([Asked("where was ann born", 1)])


def test_what_cannot_be_served_is_refused_before_anything_starts(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hmn train"):
        located(Source(run_dir=str(tmp_path)))
    with pytest.raises(GenerationNotFound):
        located(source_of(place, generation=99))
    train_again(place)
    with pytest.raises(VersionMismatch, match="hmn embed"):
        located(source_of(place))
    found = located(source_of(place, memory=None))
    assert found.follows_checkpoint
    assert Path(found.memory or "").is_absolute()


ZOE = StatedFact(subject_id="z", subject="zoe", relation="born_in", object_ids=("x",), objects=("Xanten",))


def test_what_is_written_is_in_the_next_answer_and_survives(place: Path, engine: RunEngine) -> None:
    before = engine.status()
    written = engine.write(Upsert(facts=[ZOE]))
    assert (written.generation, len(written.fact_ids)) == (before.generation + 1, 1)
    batch = engine.ask([Asked("where was zoe born", 99)])
    assert batch.generation == written.generation
    assert "Xanten" in [fact.objects[0] for fact in batch.results[0]]
    assert (engine.status().generation, engine.status().facts) == (written.generation, before.facts + 1)
    replaced = engine.write(Upsert(facts=[replace(ZOE, objects=("Zell",))]))
    assert replaced.fact_ids == written.fact_ids
    gone = engine.write(Deletion(fact_ids=[*written.fact_ids, 5, 2**70]))
    assert (gone.fact_ids, gone.unknown) == (written.fact_ids, (5, 2**70))
    assert engine.write(Deletion(fact_ids=[5])).generation == gone.generation
    assert engine.status().facts == before.facts
    assert verify_memory(str(place / "memory")).problems == ()


def test_many_writes_leave_few_generations_in_the_shards(engine: RunEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.serve.engine.WRITES_HELD", 3)
    for number in range(7):
        engine.write(Upsert(facts=[replace(ZOE, objects=(f"town {number}",))]))
    (shard,) = engine._opened.memory.stats().shards
    assert len(shard.generations_resident) <= 3
    assert engine.ask([Asked("where was zoe born", 99)]).generation == engine.status().generation


def test_a_write_goes_on_top_of_what_others_wrote(place: Path, engine: RunEngine) -> None:
    add_a_fact(place)
    assert engine.write(Deletion(fact_ids=[fact_id_of("z", "born_in")])).fact_ids
    assert engine.status().generations_rolled_out == 1


def test_what_cannot_be_written_is_refused_and_changes_nothing(place: Path, engine: RunEngine) -> None:
    storage = Storage(str(place / "memory"))
    newest = current_generation(storage)
    with pytest.raises(Refused, match="upsert: fact 0: empty subject_id") as refused:
        engine.write(Upsert(facts=[replace(ZOE, subject_id=" ")]))
    assert refused.value.status == 422
    stays = RunEngine(source_of(place, generation=newest))
    with pytest.raises(Refused, match="stays at generation") as refused:
        stays.write(Upsert(facts=[ZOE]))
    assert refused.value.status == 409
    stays.close()
    assert current_generation(storage) == newest
    train_again(place)  # another model embeds the memory, and is not published yet
    newest = current_generation(storage)
    with pytest.raises(Refused, match="another model"):
        engine.write(Upsert(facts=[ZOE]))
    assert current_generation(storage) == newest
