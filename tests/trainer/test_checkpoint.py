"""Checkpoints: what is written is what is read, and nothing else is."""

from pathlib import Path

import pytest
import torch

from memory_store.errors import CorruptFile
from memory_store.storage import Storage
from trainer.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint

ABOUT = {"generation": 4, "memory": "m", "fingerprint": "f", "features": "v", "encoder": "ngram"}
TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(7.0),
    "c": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "d": torch.zeros(0, 4),
    "e": torch.tensor([2**40]),
}


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert newest_checkpoint(storage) is None
    save_checkpoint(storage, TENSORS, step=5, total_steps=9, **ABOUT)
    info = newest_checkpoint(storage)
    assert info is not None
    assert (info.step, info.generation) == (5, 4)
    loaded = load_checkpoint(storage, info)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_the_newest_checkpoint_replaces_the_older_one(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for step in (5, 10):
        save_checkpoint(storage, TENSORS, step=step, total_steps=20, **ABOUT)
    info = newest_checkpoint(storage)
    assert info is not None
    assert info.step == 10
    assert storage.list("checkpoints") == ["checkpoints/latest.json", info.path]


@pytest.mark.parametrize("at", [3, 12, 200, -1])
def test_an_altered_checkpoint_is_refused(tmp_path: Path, at: int) -> None:
    storage = Storage(str(tmp_path))
    info = save_checkpoint(storage, TENSORS, step=5, total_steps=9, **ABOUT)
    content = bytearray((tmp_path / info.path).read_bytes())
    content[at] ^= 1
    (tmp_path / info.path).write_bytes(bytes(content))
    with pytest.raises(CorruptFile, match="expected checksum"):
        load_checkpoint(storage, info)


def test_truncated_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    info = save_checkpoint(storage, TENSORS, step=5, total_steps=9, **ABOUT)
    path = tmp_path / info.path
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptFile, match="bytes, found"):
        load_checkpoint(storage, info)
    path.unlink()
    with pytest.raises(CorruptFile, match="found no file"):
        load_checkpoint(storage, info)
    latest = tmp_path / "checkpoints" / "latest.json"
    for text in ("{", "[]", '{"step": 3}', latest.read_text().replace('"step": 5', '"step": "5"')):
        latest.write_text(text)
        with pytest.raises(CorruptFile, match="description"):
            newest_checkpoint(storage)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    save_checkpoint(storage, TENSORS, step=5, total_steps=9, **ABOUT)
    latest = tmp_path / "checkpoints" / "latest.json"
    latest.write_text(latest.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CorruptFile, match="checkpoint format 1, found 2"):
        newest_checkpoint(storage)
