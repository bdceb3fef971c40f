"""`hmn reshard` and `hmn reindex --name`: a memory that jobs share is divided and embedded anew while they use it."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deploy.cli import hmn
from deploy.entry import run
from memory_store import Memory, MemoryWriter, open_memory, stop_memory
from memory_store.errors import ShardUnavailable

DIM, ROWS = 8, 300


@pytest.fixture
def url(tmp_path: Path, rng: np.random.Generator) -> str:
    with MemoryWriter(str(tmp_path / "kb"), dim=DIM) as writer:
        writer.append(pa.table({"fact_id": np.arange(ROWS)}), rng.standard_normal((ROWS, DIM)).astype(np.float32))
    return str(tmp_path / "kb")


@pytest.fixture
def job(ray_cluster: None, url: str) -> Iterator[Memory]:
    """Somebody who shares the memory, and uses it all the while."""
    with open_memory(url, shards=2, backend="ray", name="places") as memory:
        try:
            yield memory
        finally:
            stop_memory("places")


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> Any:
    assert run(hmn, [*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_shared_memory_is_divided_anew_by_its_name_and_by_its_url(
    job: Memory, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = job.search(np.ones((1, DIM)), 5).fact_ids_BK
    found = said(["reshard", "places", "--shards", "3"], capsys)
    (divided,) = found["divided"]
    assert (divided["name"], divided["generation"], divided["rows"]) == ("places", 1, [100, 100, 100])
    np.testing.assert_array_equal(job.search(np.ones((1, DIM)), 5).fact_ids_BK, expected)
    assert len(job.stats().shards) == 3
    assert run(hmn, ["reshard", url, "--shards", "1"]) == 0
    assert "places: serves generation 1 from 1 shard now" in capsys.readouterr().out
    np.testing.assert_array_equal(job.search(np.ones((1, DIM)), 5).fact_ids_BK, expected)
    shards = [line for line in said(["cluster", "status"], capsys)["shards"] if line["memory"] == "places"]
    assert [(line["shard"], line["num_shards"], line["rows"]) for line in shards] == [(0, 1, ROWS)]


def test_a_url_that_nobody_shares_is_tried_and_what_is_neither_is_refused(
    ray_cluster: None, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(["reshard", url, "--shards", "2"], capsys)
    assert (found["names"], found["divided"][0]["rows"]) == ([], [150, 150])
    assert run(hmn, ["reshard", url, "--shards", "2"]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert run(hmn, ["reshard", "no-such-name", "--shards", "2"]) == 2
    assert "shared in the cluster (none), found no-such-name" in capsys.readouterr().err
    assert run(hmn, ["reshard", "places"]) == 2


class Model:
    """A run's model, as far as a re-index knows it."""

    def fingerprint(self) -> str:
        return "better"


def test_a_shared_memory_is_embedded_anew_and_re_indexed_by_its_name(
    job: Memory, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    better_ND = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    monkeypatch.setattr("deploy.jobs.embed.make_embedder", lambda run: lambda facts: better_ND[facts["fact_id"]])
    monkeypatch.setattr("trainer.run.load_run", lambda run: (None, None, Model()))
    arguments = ["reindex", "--memory", url, "--name", "places"]
    found = said([*arguments, "--model", "better"], capsys)
    assert (found["generation"], found["encoder"], found["rows"]) == (2, "better", [150, 150])
    assert job.search(np.ones((1, DIM))).generation == 1, "its model made the questions that it asks"
    assert job.refresh() == 2
    assert job.search(better_ND[:4], 1).generation == 2
    assert run(hmn, [*arguments, "--index", "ivf?nlist=4&nprobe=4", "--shards", "1"]) == 0
    assert "places, ivf?nlist=4&nprobe=4 on 1 shard" in capsys.readouterr().out
    assert [line.index for line in job.stats().shards] == ["ivf?nlist=4&nprobe=4"]
    assert run(hmn, ["reindex", "--memory", str(Path(url).parent), "--name", "places", "--index", "exact"]) == 2
    assert "what places shares" in capsys.readouterr().err
    assert run(hmn, ["reindex", "--memory", url, "--name", "nobody", "--index", "exact"]) == 2


class Shared:
    """A shared memory without a cluster. fails: the name whose re-division does."""

    fails = ""

    def __init__(self, name: str) -> None:
        self.name, self.shards = name, 0

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def reindex(self, *, shards: int) -> None:
        if self.name == self.fails:
            raise ShardUnavailable("no room")
        self.shards = shards

    def stats(self) -> Any:
        line = SimpleNamespace(rows=len(self.name), bytes=8)
        return SimpleNamespace(generation=1, shards=[line] * self.shards)


def test_of_several_names_each_is_reported_and_a_failure_says_which_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deploy.jobs.reshard._names_of", lambda memory: ["a", "bb", "ccc"])
    monkeypatch.setattr("memory_store.opening.open_shared", Shared)
    found = said(["reshard", "kb", "--shards", "2"], capsys)
    assert [(one["name"], one["rows"]) for one in found["divided"]] == [("a", [1, 1]), ("bb", [2, 2]), ("ccc", [3, 3])]
    assert run(hmn, ["reshard", "kb", "--shards", "2"]) == 0
    assert capsys.readouterr().out.count("serves generation 1 from 2 shards now") == 3
    monkeypatch.setattr(Shared, "fails", "ccc")
    assert run(hmn, ["reshard", "kb", "--shards", "2"]) == 1
    assert capsys.readouterr().err == "error: ccc: no room; divided among 2 already: a, bb\n"
    monkeypatch.setattr(Shared, "fails", "a")
    assert run(hmn, ["reshard", "kb", "--shards", "2"]) == 1
    assert capsys.readouterr().err == "error: no room\n"
