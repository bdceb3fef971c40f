"""`hmn bench serve` runs to its end, on a service that needs no Ray: synthetic vectors, a load, a re-index under it."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from deploy.bench.serve import Disturbance, run_disturbed, run_serve_bench
from deploy.bench.serve_load import connect_to
from deploy.bench.serve_world import reindex, synthetic_world, vectors_of_ids
from deploy.serve.app import make_app
from deploy.serve.engine import RunEngine
from deploy.serve.settings import ServeSettings, Source
from deploy.serve.source import located
from pipeline.ingest import ingest
from trainer.config import RunConfig
from trainer.loop import train
from trainer.settings import build

FACTS = 1_500


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    (tmp_path / "facts.tsv").write_text(
        "subject_id\tsubject\trelation\tobject_id\tobject\np\tann\tborn_in\tx\tAnnaba\n"
    )
    for split in ("train", "valid"):
        asked = "subject_id\trelation\tobject_id\tquestion\np\tborn_in\tx\twhere was ann born\n"
        (tmp_path / f"questions_{split}.tsv").write_text(asked)
    ingest([str(tmp_path / "facts.tsv")], str(tmp_path / "small"))
    settings: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "memory": {"url": str(tmp_path / "small")},
        "data": {"questions": str(tmp_path / "questions_*.tsv")},
        "model": {"entity_dim": 8, "relation_dim": 8, "feature_bits": 10, "hidden": 8, "reader_hidden": 8},
        "train": {"epochs": 1, "batch_questions": 1, "k": 1, "threads": 1},
    }
    train(build(RunConfig, settings))
    return str(tmp_path / "run")


@contextmanager
def served(source: Source) -> Iterator[str]:
    """The application over a real engine, behind a real port; looks for new generations ten times a second."""
    app = make_app(RunEngine(source), ServeSettings(source=source, poll_s=0.1))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def test_synthetic_vectors_are_each_nearest_to_itself() -> None:
    ids = np.arange(0, FACTS * 1_000, 1_000)
    found_ND = vectors_of_ids(ids, 16)
    np.testing.assert_allclose(np.linalg.norm(found_ND, axis=1), 1, rtol=1e-5)
    assert (np.argmax(found_ND[:50] @ found_ND.T, axis=1) == np.arange(50)).all()


def test_a_load_is_measured_to_its_end_and_goes_on_through_a_reindex(run_dir: str, tmp_path: Path) -> None:
    world = synthetic_world(run_dir, FACTS, 3, tmp_path)
    source = located(Source(run_dir=run_dir, memory=world.memory, backend="local"))
    with served(source) as url:
        connect = connect_to(url)
        result = run_serve_bench(connect, world.requests, clients=8, seconds=0.3, turns=1)
        assert result["facts"] == FACTS
        assert result["concurrent"]["failures"] == result["one_at_a_time"]["failures"] == {}
        assert result["concurrent"]["questions_per_batch"] >= 1
        assert result["times_as_many"] > 0

        def begin() -> threading.Thread:
            again = threading.Thread(target=reindex, args=(world.memory, run_dir, True))
            again.start()
            return again

        again = Disturbance(name="during_reindex", begin=begin, over=lambda thread: not thread.is_alive())
        disturbed = run_disturbed(connect, world.requests, again, clients=4, seconds=0.3)
        assert disturbed["failures"] == {}
        assert disturbed["questions"] > 0
    manifests = sorted((Path(world.memory) / "manifests").glob("*.json"))
    assert json.loads(manifests[-1].read_text())["encoder"] == json.loads(manifests[1].read_text())["encoder"]
    assert len(manifests) == 4


def test_a_disturbance_that_fails_fails_the_bench(run_dir: str, tmp_path: Path) -> None:
    world = synthetic_world(run_dir, 10, 3, tmp_path)

    def begin() -> None:
        raise RuntimeError("there is nothing to kill")

    broken = Disturbance(name="during_kill", begin=begin, over=lambda _: True)
    with (
        served(located(Source(run_dir=run_dir, memory=world.memory, backend="local"))) as url,
        pytest.raises(RuntimeError, match="nothing to kill"),
    ):
        run_disturbed(connect_to(url), world.requests, broken, clients=1, seconds=0.0)
