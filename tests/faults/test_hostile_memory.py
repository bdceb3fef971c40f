"""A memory made by a stranger: its manifest is well formed and lies, and whoever opens it is told in one line."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deploy.cli import hmn
from deploy.entry import run
from memory_store import MemoryWriter, open_memory
from memory_store.errors import CorruptFile
from memory_store.manifest_format import _content_checksum

ROWS, DIM = 20, 4


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    with MemoryWriter(str(tmp_path / "kb"), dim=DIM) as writer:
        ids_N = np.arange(ROWS)
        writer.append(pa.table({"fact_id": ids_N}), np.ones((ROWS, DIM), np.float32))
    return tmp_path / "kb"


def lie(memory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and give it the checksum that it would have."""
    path = memory / "manifests" / "00000001.json"
    content = json.loads(path.read_text())
    change(content)
    content["checksum"] = _content_checksum(content)
    path.write_text(json.dumps(content))


def read(memory: Path) -> None:
    with open_memory(str(memory)) as opened:
        opened.search(np.ones((1, DIM), np.float32), 1)
        opened.fetch([0])


def more_rows(rows: int) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        content["fact_count"] = rows
        for part in (*content["facts"], *content["vectors"]):
            part["rows"] = rows

    return change


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a trillion rows": more_rows(1 << 39),
    "more rows than there are": more_rows(ROWS + 1),
    "fewer rows than there are": more_rows(ROWS - 1),
    "a petabyte": lambda content: content["vectors"][0].update(bytes=1 << 49),
    "a million dimensions": lambda content: content.update(dim=1 << 20),
    "another dimension": lambda content: content.update(dim=DIM * 2),
    "another checksum": lambda content: content["vectors"][0].update(checksum="xxh3-128:" + "0" * 32),
    "a part that is not there": lambda content: content["vectors"][0].update(path="vectors/x.arrow"),
    "a path out of the memory": lambda content: content["facts"][0].update(path="facts/../../../etc/passwd.arrow"),
    "an absolute path": lambda content: content["facts"][0].update(path="/etc/passwd.arrow"),
    "a number for a path": lambda content: content["facts"][0].update(path=7),
    "a text for rows": lambda content: content["facts"][0].update(rows="20"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_manifest_that_lies_is_refused_without_the_memory_it_asks_for(
    memory: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lie(memory, LIES[name])
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptFile) as caught:
        read(memory)
    assert "\n" not in str(caught.value)
    assert run(hmn, ["verify", str(memory)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 256 * 1024


def test_a_part_that_is_a_link_out_of_the_memory_is_not_read_as_one(memory: Path, tmp_path: Path) -> None:
    (part,) = (memory / "vectors").glob("*.arrow")
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(part.stat().st_size))
    part.unlink()
    part.symlink_to(secret)
    with pytest.raises(CorruptFile):
        read(memory)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "../../x", "a\\b", "a\nb", "x" * 300, "%2e%2e%2fx"])
@pytest.mark.parametrize("command", ["tag", "untag"])
def test_a_name_is_never_a_path(memory: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(str(path) for path in memory.parent.rglob("*"))
    words = ["tag", str(memory), name, *(["--remove"] if command == "untag" else [])]
    assert run(hmn, words) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(str(path) for path in memory.parent.rglob("*")) == before
