"""Fixtures for memories on every kind of storage: a local directory, and fsspec's filesystem in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from memory_store.storage import Storage
from memory_store.writer import MemoryWriter

WriteMemory = Callable[..., Storage]


@pytest.fixture(params=["local", "memory"])
def memory_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a memory that does not exist yet, once on the local disk and once in memory."""
    if request.param == "local":
        yield str(tmp_path / "memory")
        return
    yield f"memory://hmn-tests/{tmp_path.name}"
    files = fsspec.filesystem("memory")
    if files.exists("/hmn-tests"):
        files.rm("/hmn-tests", recursive=True)


@pytest.fixture
def storage(memory_url: str) -> Storage:
    return Storage(memory_url)


@pytest.fixture
def facts_of() -> Callable[..., pa.Table]:
    """Ids -> a facts table with only fact_id."""

    def facts(ids: object) -> pa.Table:
        return pa.table({"fact_id": pa.array(np.asarray(ids, dtype=np.int64))})

    return facts


@pytest.fixture
def vectors_for() -> Callable[..., NDArray[np.float32]]:
    """Ids -> vectors [n, dim] that depend on the id alone, so that a mix-up of rows shows."""

    def vectors(ids: object, dim: int = 4) -> NDArray[np.float32]:
        ids_N = np.asarray(ids, dtype=np.float32)
        return np.sin(ids_N[:, None] + np.arange(dim, dtype=np.float32))

    return vectors


@pytest.fixture
def write_memory(facts_of: Callable[..., pa.Table], vectors_for: Callable[..., NDArray[np.float32]]) -> WriteMemory:
    """Commit one generation with the given ids, appended to what is there."""

    def write(storage: Storage, ids: object, dim: int = 4, part_rows: int = 3, note: str = "") -> Storage:
        with MemoryWriter(storage, dim=dim, part_rows=part_rows, note=note) as writer:
            writer.append(facts_of(ids), vectors_for(ids, dim))
        return storage

    return write
