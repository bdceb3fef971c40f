"""What a run records of itself: figures of its steps, and of a memory that is stale and is refreshed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.config import RunConfig
from trainer.data import Paths, Questions
from trainer.environment import ENVIRONMENT
from trainer.loop import train
from trainer.metrics import among, gold_ranks, read_metrics
from trainer.watch import Sample

MakeConfig = Callable[..., RunConfig]


def test_gold_ranks_count_from_one_and_are_zero_where_no_gold_fact_was_retrieved() -> None:
    ids_QK = np.array([[5, 7, 9], [5, 7, -1], [1, 2, 3]])
    gold_QG = np.array([[9, 7], [8, -1], [1, -1]])
    assert gold_ranks(ids_QK, gold_QG).tolist() == [2, 0, 1]


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (40, 9, 13)])
def test_among_says_what_holding_every_id_against_every_other_says(
    shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    rows, width, others = shape
    ids_QX, others_QY = rng.integers(-1, 15, (rows, width)), rng.integers(-1, 15, (rows, others))
    ids_QX[ids_QX == 14], others_QY[others_QY == 14] = 2**62, 2**62
    # [Q, X, 1] against [Q, 1, Y]
    expected_QX = ((ids_QX[:, :, None] == others_QY[:, None, :]) & (ids_QX[:, :, None] >= 0)).any(axis=2)
    np.testing.assert_array_equal(among(ids_QX, others_QY), expected_QX)


def test_a_k_beyond_all_facts_is_recorded_without_every_pair_of_what_was_found(run_config: MakeConfig) -> None:
    """All pairs would be 84 questions times 40,000 times 40,000: more than any machine has."""
    config = run_config(train={"max_steps": 2, "k": 40_000, "refresh_recall": 0.01, "refresh_wait": "always"})
    train(config)
    lines = [line for line in read_metrics(Path(config.run_dir)) if line["kind"] == "refresh"]
    assert [line["overlap"] for line in lines[1:]] == [1.0], "all facts are found, by whatever vectors"


def test_a_run_records_every_stage_of_its_steps_and_what_the_stale_memory_still_found(run_config: MakeConfig) -> None:
    config = run_config(train={"max_steps": 14, "refresh_wait": "always"})
    train(config)
    lines = read_metrics(Path(config.run_dir))
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [10, 14]
    for line in steps:
        assert 0 <= line["accuracy"] <= line["recall"] <= 1
        stages = {
            name: value for name, value in line["timing"].items() if name not in ("batch_s", "step_s", "generation")
        }
        assert set(stages) == {"encode_s", "search_s", "forward_s", "backward_s", "update_s"}
        assert sum(stages.values()) == pytest.approx(line["timing"]["step_s"], abs=1e-3)
    refreshes = [line for line in lines if line["kind"] == "refresh"]
    assert [line["step"] for line in refreshes] == [0, 6, 12, 14]
    first, *others = refreshes
    assert "overlap" not in first  # nothing was served before it
    for line in others:
        assert 0 < line["overlap"] <= 1
        assert 0 <= line["stale_accuracy"] <= line["stale_recall"] <= 1
    assert refreshes[-1]["accuracy"] > first["accuracy"]
    assert all(line["held_out"] == 1 and line["facts"] == 96 * 3 for line in refreshes)
    generations = [line["timing"]["generation"] for line in refreshes]
    assert generations == sorted(set(generations))
    assert [line["timing"]["generation"] for line in steps] == generations[1:3], "of the refreshes at 6 and at 12"
    assert (Path(config.run_dir) / ENVIRONMENT).exists()


def test_a_full_softmax_searches_nothing_and_its_steps_say_nothing_of_recall(run_config: MakeConfig) -> None:
    config = run_config(train={"max_steps": 2, "candidates": "full"})
    train(config)
    (line,) = [line for line in read_metrics(Path(config.run_dir)) if line["kind"] == "train"]
    assert "recall" not in line
    assert "search_s" not in line["timing"]


def test_questions_of_a_single_file_are_not_called_held_out(world: Path) -> None:
    from pipeline.sources.questions import read_questions

    source = str(world / "questions_train.tsv")
    train_questions = Questions.of(read_questions(source, "train"))
    paths = Paths.of(np.unique(train_questions.key_Q), np.arange(len(np.unique(train_questions.key_Q))))
    one, other = (Sample.draw(source, train_questions, paths, seed=0) for _ in range(2))
    assert not one.held_out
    assert one.gold_QG.tolist() == other.gold_QG.tolist()
    assert Sample.draw(str(world), train_questions, paths, seed=0).held_out
