"""Batches follow from seed and step; swapped questions ask about a fact that the memory holds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from memory_store.errors import EmptyInput
from memory_store.manifest import read_manifest
from memory_store.storage import Storage
from pipeline.facts import fact_id_of
from pipeline.features import normalise
from pipeline.sources.questions import read_questions
from trainer.data import Paths, Questions, TrainingData, _Subjects, steps_per_epoch


def _data(url: str, world: Path, **changes: object) -> TrainingData:
    storage = Storage(url)
    manifest = read_manifest(storage)
    settings: dict[str, object] = {"batch_questions": 32, "swap": 0.5, "seed": 1, **changes}
    questions = Questions.of(read_questions(str(world), "train"))
    return TrainingData(questions, Paths.scan(storage, manifest), storage, manifest, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("grouping", ["relation", "triple"])
def test_every_question_of_a_batch_asks_for_a_fact_of_the_memory_that_its_text_is_about(
    ingest_world: Callable[..., str], world: Path, tmp_path: Path, grouping: str
) -> None:
    url = ingest_world(tmp_path / "memory", grouping=grouping)
    storage = Storage(url)
    from memory_store.parts import scan_facts

    rows = [row for table in scan_facts(storage, read_manifest(storage)) for row in table.to_pylist()]
    by_id = {row["fact_id"]: row for row in rows}
    data = _data(url, world, swap=1.0)
    for step in (0, data.steps_per_epoch):
        batch = data.batch(step)
        for text, gold in zip(batch.texts, batch.gold_BG[:, 0], strict=True):
            fact = by_id[gold]
            names = [fact["subject"], *(fact["aliases"] or [])]
            assert any(normalise(name) in normalise(text) for name in names)
            word = fact["relation"].rsplit(".")[-1].split("/")[-1].split("_")[-1]
            assert any(
                hint in text for hint in {"birth": ["born", "birth"], "spouse": ["married", "wife"]}.get(word, [""])
            )


def test_a_step_shows_the_same_batch_whenever_it_is_asked(
    ingest_world: Callable[..., str], world: Path, tmp_path: Path
) -> None:
    url = ingest_world(tmp_path / "memory")
    first, second = _data(url, world), _data(url, world)
    for step in (5, 2, 40):
        one, other = first.batch(step), second.batch(step)
        assert one.texts == other.texts
        np.testing.assert_array_equal(one.gold_BG, other.gold_BG)
    assert first.batch(3).texts != _data(url, world, seed=2).batch(3).texts


def test_an_epoch_shows_every_question_at_most_once_and_workers_share_a_batch(
    ingest_world: Callable[..., str], world: Path, tmp_path: Path
) -> None:
    data = _data(ingest_world(tmp_path / "memory"), world, swap=0.0)
    texts = [text for step in range(data.steps_per_epoch) for text in data.batch(step).texts]
    assert len(set(texts)) == len(texts) == 32 * (len(data) // 32)
    whole = data.batch(1)
    shares = [data.batch(1, rank, 3) for rank in range(3)]
    assert sorted(text for share in shares for text in share.texts) == sorted(whole.texts)
    assert sum(len(share.gold_BG) for share in shares) == len(whole.gold_BG)


def test_swapping_changes_about_as_many_questions_as_asked(
    ingest_world: Callable[..., str], world: Path, tmp_path: Path
) -> None:
    url = ingest_world(tmp_path / "memory")
    plain, swapped = _data(url, world, swap=0.0), _data(url, world, swap=0.5)
    changed = [
        normalise(one) != normalise(other)
        for step in range(plain.steps_per_epoch)
        for one, other in zip(plain.batch(step).texts, swapped.batch(step).texts, strict=True)
    ]
    assert 0.35 < np.mean(changed) < 0.6


def test_questions_about_facts_that_the_memory_lacks_are_left_out_and_counted(
    ingest_world: Callable[..., str], world: Path, tmp_path: Path
) -> None:
    storage = Storage(ingest_world(tmp_path / "memory"))
    manifest = read_manifest(storage)
    table = read_questions(str(world), "train")
    strange = table.set_column(1, "subject_id", [["nobody"] * 10 + table["subject_id"].to_pylist()[10:]])
    paths = Paths.scan(storage, manifest)
    data = TrainingData(Questions.of(strange), paths, storage, manifest, batch_questions=8, swap=0.5, seed=0)
    assert len(data) == len(table) - 10
    asked, held = (
        r"\(subject 'nobody', relation '(?P<relation>\S+)'\)",
        r"subject 'p\d+', named '\D+', relation '(?P=relation)'",
    )
    with pytest.raises(EmptyInput, match=rf"none of them .* the first is .* {asked}, .* for example, {held}; name"):
        TrainingData(Questions.of(strange.slice(0, 10)), paths, storage, manifest, batch_questions=8, swap=0, seed=0)


def test_all_facts_of_a_path_are_gold() -> None:
    key_N = np.array([9, 4, 9, 7, 9], np.int64)
    paths = Paths.of(key_N, np.array([30, 20, 10, 40, 50], np.int64))
    assert paths.gold(np.array([9, 4, 5])).tolist() == [[10, 30, 50], [20, -1, -1], [-1, -1, -1]]
    assert paths.gold(np.array([5])).shape == (1, 0)
    assert Paths.of(key_N[:0], key_N[:0]).gold(np.array([5])).shape == (1, 0)


def test_paths_hold_the_content_ids_of_facts(ingest_world: Callable[..., str], tmp_path: Path) -> None:
    storage = Storage(ingest_world(tmp_path / "memory"))
    paths = Paths.scan(storage, read_manifest(storage))
    gold = fact_id_of("p3", "people/person/spouse")
    assert paths.gold(np.array([gold])).tolist() == [[gold]]


def test_an_epoch_has_at_least_one_step() -> None:
    assert [steps_per_epoch(count, 32) for count in (1, 31, 32, 95)] == [1, 1, 1, 2]


def test_questions_are_moved_to_facts_that_no_question_asks_about_ten_times_as_often() -> None:
    subjects = _Subjects(
        bounds_R=np.array([0, 5, 7]), unasked_R=np.array([2, 0]), key_X=np.arange(7), names_X=[["name"]] * 7
    )
    drawn = np.bincount([subjects.draw(0, step / 23) for step in range(23)], minlength=7)
    assert drawn.tolist() == [10, 10, 1, 1, 1, 0, 0]
    assert [subjects.draw(1, uniform) for uniform in (0.0, 0.49, 0.5, 0.999)] == [5, 5, 6, 6]
