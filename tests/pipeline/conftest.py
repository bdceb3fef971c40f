"""Fixtures of the pipeline's tests: files of triples, and a memory's whole content as plain values."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from memory_store.manifest import read_manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from pipeline.sources.files import SourceFile, find_files


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Write a file under the test's folder; names that end in .gz and .zst are compressed."""

    def write_file(name: str, content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        if name.endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        elif name.endswith(".zst"):
            data = pa.compress(data, codec="zstd", asbytes=True)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    return write_file


@pytest.fixture
def source_file() -> Callable[[str], SourceFile]:
    def only(path: str) -> SourceFile:
        (file,) = find_files(path)
        return file

    return only


@pytest.fixture
def facts_of() -> Callable[[str], dict[tuple[str, ...], dict[str, Any]]]:
    """What a memory holds: (subject_id, relation), and the object id of a triple, -> the other columns but features."""

    def read(url: str) -> dict[tuple[str, ...], dict[str, Any]]:
        storage = Storage(url)
        manifest = read_manifest(storage)
        columns = ["fact_id", "subject_id", "subject", "aliases", "relation", "object_ids", "objects"]
        rows = [row for table in scan_facts(storage, manifest, columns) for row in table.to_pylist()]
        by_triple = manifest.grouping == "triple"
        found = {}
        for row in rows:
            key = (row.pop("subject_id"), row.pop("relation")) + (tuple(row["object_ids"]) if by_triple else ())
            assert key not in found, f"{key} is there twice"
            found[key] = row
        return found

    return read
