"""Another run takes the place of the one that is served, by a link; its memory comes with it."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from deploy.serve.engine import Asked, RunEngine
from deploy.serve.rollout import Move
from deploy.serve.settings import Source
from deploy.serve.source import belongs_to, located, memory_storage, shared_name
from memory_store.errors import ConfigError
from memory_store.leases import leases
from memory_store.storage import Storage
from pipeline.ingest import ingest
from trainer.checkpoint import newest_checkpoint
from trainer.config import RunConfig
from trainer.loop import train
from trainer.settings import build

HEAD = "subject_id\tsubject\trelation\tobject_id\tobject\n"
NAMES = ("ann", "bob", "carla", "dmitri")


def trained_run(folder: Path, name: str, town: str) -> None:
    """A run with a memory of its own, where everybody was born in one town."""
    world = folder / name
    world.mkdir()
    rows = [f"p{n}\t{who}\tborn_in\t{town}\t{town}" for n, who in enumerate(NAMES)]
    (world / "facts.tsv").write_text(HEAD + "\n".join(rows) + "\n")
    asked = [f"p{n}\tborn_in\t{town}\twhere was {who} born" for n, who in enumerate(NAMES)]
    (world / "questions.tsv").write_text("subject_id\trelation\tobject_id\tquestion\n" + "\n".join(asked) + "\n")
    ingest([str(world / "facts.tsv")], str(world / "memory"))
    settings = {
        "run_dir": str(world / "run"),
        "memory": {"url": str(world / "memory")},
        "data": {"questions": str(world / "questions.tsv")},
        "model": {"entity_dim": 8, "relation_dim": 8, "feature_bits": 10, "hidden": 8, "reader_hidden": 8},
        "train": {"epochs": 1, "batch_questions": 4, "k": 2, "threads": 1},
    }
    train(build(RunConfig, settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, town in (("first", "Xanten"), ("second", "Zermatt")):
        trained_run(folder, name, town)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """The two runs, and `live`, a link to the first."""
    link(tmp_path / "live", trained / "first" / "run")
    return tmp_path


def link(at: Path, run: Path) -> None:
    """As `ln -sfn RUN live` does."""
    beside = at.with_name(at.name + ".new")
    beside.symlink_to(run)
    beside.replace(at)


@pytest.fixture
def engine(place: Path) -> Iterator[RunEngine]:
    started = RunEngine(located(Source(run_dir=str(place / "live"), backend="local")))
    yield started
    started.close()


def towns(engine: RunEngine) -> set[str]:
    batch = engine.ask([Asked(f"where was {name} born", 1) for name in NAMES])
    return {facts[0].objects[0] for facts in batch.results}


def test_a_link_moved_to_another_run_rolls_it_out_with_its_own_memory_and_back(
    trained: Path, place: Path, engine: RunEngine
) -> None:
    first, second = (Storage(str(trained / name / "memory")) for name in ("first", "second"))
    assert towns(engine) == {"Xanten"}
    assert engine.roll_out().move is Move.STAY
    link(place / "live", trained / "second" / "run")
    assert engine.roll_out().move is Move.MODEL
    assert towns(engine) == {"Zermatt"}
    assert (len(leases(first)), len(leases(second))) == (0, 1), "what is not served any more may be swept"
    link(place / "live", trained / "first" / "run")
    assert engine.roll_out().move is Move.MODEL
    assert towns(engine) == {"Xanten"}


def test_no_answer_fails_while_runs_take_each_others_place(
    trained: Path, place: Path, engine: RunEngine, ask_meanwhile: Callable[..., list[set[str]]]
) -> None:
    def roll_out(name: str) -> None:
        link(place / "live", trained / name / "run")
        engine.roll_out()

    seen = ask_meanwhile(partial(towns, engine), [partial(roll_out, name) for name in ("second", "first", "second")])
    assert {frozenset(one) for one in seen} == {frozenset({"Xanten"}), frozenset({"Zermatt"})}, "never of both"


def test_a_link_to_no_run_is_a_rollout_that_failed_and_leaves_what_is_served(place: Path, engine: RunEngine) -> None:
    link(place / "live", place / "nowhere")
    with pytest.raises(ConfigError, match="expected a run with a checkpoint"):
        engine.roll_out()
    assert towns(engine) == {"Xanten"}
    assert engine.status().failed_rollouts == 1


def test_a_memory_that_was_named_stays_whatever_run_comes(trained: Path, place: Path) -> None:
    copy = shutil.copytree(trained / "first" / "memory", place / "copy")
    source = located(Source(run_dir=str(place / "live"), memory=str(copy), backend="local"))
    checkpoint = newest_checkpoint(Storage(str(trained / "second" / "run")))
    assert checkpoint is not None
    assert memory_storage(checkpoint, source).url == str(copy)


def test_replicas_share_another_memory_under_a_name_of_its_own_that_ends_with_the_service(place: Path) -> None:
    source = located(Source(run_dir=str(place / "live"), backend="ray", name="hmn-serve-1"))
    assert source.memory is not None
    other = shared_name(Storage(str(place / "other")), source)
    assert shared_name(Storage(source.memory), source) == "hmn-serve-1"
    assert other is not None
    assert other == shared_name(Storage(str(place / "other")), source) != "hmn-serve-1"
    assert belongs_to(other, "hmn-serve-1")
    assert belongs_to("hmn-serve-1", "hmn-serve-1")
    assert not belongs_to("hmn-serve-10", "hmn-serve-1")
    assert not belongs_to("hmn-serve-1", None)
