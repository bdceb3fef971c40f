"""A memory that jobs share by name: one re-divides or re-embeds it, the others search on without a failure."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store import Memory, MemoryWriter, TopK, open_memory, stop_memory
from memory_store.editions import Editions
from memory_store.errors import ReindexFailed, ShardUnavailable, StorageFailed, VersionMismatch

pytestmark = pytest.mark.usefixtures("ray_cluster")

DIM, ROWS, NAME = 8, 600, "living"


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((ROWS, DIM)).astype(np.float32)


@pytest.fixture
def url(tmp_path: Path, vectors: np.ndarray) -> str:
    with MemoryWriter(str(tmp_path / "kb"), dim=DIM) as writer:
        writer.append(pa.table({"fact_id": np.arange(ROWS), "subject": [str(i) for i in range(ROWS)]}), vectors)
    return str(tmp_path / "kb")


@pytest.fixture
def job(url: str) -> Iterator[Memory]:
    """The job that shared the memory first."""
    with open_memory(url, shards=2, backend="ray", name=NAME) as memory:
        try:
            yield memory
        finally:
            stop_memory(NAME)


class Searching:
    """Another job that searches without a pause; its failure and its answers are kept."""

    def __init__(self, memory: Memory, queries_BD: np.ndarray) -> None:
        self.memory = memory
        self.queries_BD = queries_BD
        self.answers: list[TopK] = []
        self.failure: BaseException | None = None
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._search)

    def __enter__(self) -> "Searching":
        self._thread.start()
        self.wait_for(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more searches have ended."""
        enough = len(self.answers) + more
        while len(self.answers) < enough and self._thread.is_alive():
            self._enough.wait(0.01)

    def _search(self) -> None:
        try:
            while not self._enough.is_set():
                self.answers.append(self.memory.search(self.queries_BD, 10))
        except BaseException as error:  # noqa: BLE001 - the test tells it
            self.failure = error


def same(answers: list[TopK], expected: TopK) -> bool:
    return all(
        np.array_equal(found.fact_ids_BK, expected.fact_ids_BK)
        and np.array_equal(found.scores_BK, expected.scores_BK)
        and (found.generation, found.coverage) == (expected.generation, 1.0)
        for found in answers
    )


def running() -> list[str]:
    from memory_store.actors import named_shards

    return sorted(shard for shard, memory in named_shards().items() if memory == NAME)


def test_a_shared_memory_is_divided_anew_while_another_job_searches(
    job: Memory, url: str, rng: np.random.Generator
) -> None:
    queries_BD = rng.standard_normal((4, DIM))
    expected = job.search(queries_BD, 10)
    with open_memory(url, shards=2, backend="ray", name=NAME) as other:
        with Searching(other, queries_BD) as searching:
            assert job.reindex(shards=3) == 1
            searching.wait_for(3)
        assert searching.failure is None
        assert same(searching.answers, expected)
        assert [line.rows for line in other.stats().shards] == [200, 200, 200]
        assert [line.pid for line in other.stats().shards] == [line.pid for line in job.stats().shards]
        assert len(running()) == 3, "the shards of before are gone"
        with open_memory(url, shards=2, backend="ray", name=NAME) as third:
            assert len(third.stats().shards) == 3, "asked for as at first, given as it is"
        with pytest.raises(VersionMismatch, match="shards=3 instead of 4"):
            open_memory(url, shards=4, backend="ray", name=NAME)
        assert other.reindex(index="ivf?nlist=8&nprobe=8") == 1
        assert job.fetch([7])["subject"].to_pylist() == ["7"]
        assert {line.index for line in job.stats().shards} == {"ivf?nlist=8&nprobe=8"}, "every other call follows too"


def test_a_shared_memory_is_embedded_anew_and_each_job_takes_it_over_at_its_refresh(
    job: Memory, url: str, vectors: np.ndarray, rng: np.random.Generator
) -> None:
    queries_BD = rng.standard_normal((4, DIM))
    expected = job.search(queries_BD, 10)
    with open_memory(url, shards=2, backend="ray", name=NAME) as other:
        with Searching(other, queries_BD) as searching:
            assert job.reindex(lambda facts: -vectors[facts["fact_id"].to_numpy()], shards=1) == 2
            searching.wait_for(3)
        assert searching.failure is None
        assert same(searching.answers, expected), "on the new shards too, its questions meet the vectors made for them"
        assert len(running()) == 1
        assert job.search(queries_BD, 10).generation == 2
        assert other.refresh() == 2
        assert same([other.search(-queries_BD, 10)], job.search(-queries_BD, 10))
        assert np.array_equal(other.search(-queries_BD, 10).fact_ids_BK, expected.fact_ids_BK)
        assert other.upsert(pa.table({"fact_id": [ROWS]}), np.ones((1, DIM), np.float32)) == 3
        assert job.refresh() == 3
        assert job.holds([ROWS]).all()


def test_a_re_division_that_fails_or_is_overtaken_leaves_the_shards_that_serve(
    job: Memory, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Editions, edition: object) -> None:
        raise StorageFailed("the head did not answer")

    before = running()
    with monkeypatch.context() as failing:
        failing.setattr(Editions, "publish", fails)
        with pytest.raises(ReindexFailed, match="while switching: the head did not answer"):
            job.reindex(shards=3)
    publish = Editions.publish
    with open_memory(url, shards=2, backend="ray", name=NAME) as faster:

        def overtaken(self: Editions, edition: object) -> None:
            monkeypatch.setattr(Editions, "publish", publish)
            faster.reindex(shards=1)
            publish(self, edition)  # type: ignore[arg-type]

        assert running() == before
        monkeypatch.setattr(Editions, "publish", overtaken)
        with pytest.raises(ReindexFailed, match="another job re-divided"):
            job.reindex(shards=3)
        assert len(running()) == 1
        assert job.search(np.ones((1, DIM)), ROWS).coverage == 1.0
        assert len(job.stats().shards) == 1


def test_a_stopped_memory_fails_its_users_with_one_line_and_is_not_started_again_by_them(job: Memory, url: str) -> None:
    assert stop_memory(NAME) == 2
    with pytest.raises(ShardUnavailable, match="found that it was stopped; open it again"):
        job.search(np.ones((1, DIM)))
    with pytest.raises(ShardUnavailable, match="stopped"):
        job.refresh()
    assert running() == []
    with open_memory(url, shards=1, backend="ray", name=NAME) as again:
        assert again.search(np.ones((1, DIM))).coverage == 1.0
