"""Mapped files: views that outlive the file's name, and nothing of them left once they are let go."""

from pathlib import Path

import numpy as np
import pytest

from memory_store.mapped_files import map_file

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc, which this system has not")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 100)
    return tmp_path / "file"


def test_what_is_read_is_a_view_that_outlives_reader_and_file(path: Path) -> None:
    first, second = (map_file(path) for _ in range(2))
    one, other = first.read_buffer(), second.read_buffer()
    assert one.address != other.address
    assert one.address % 64 == 0
    assert np.frombuffer(one.slice(0, 4), np.uint8).tolist() == [0, 1, 2, 3]
    values = np.frombuffer(one, np.uint8)
    path.unlink()
    first.close()
    del first, one
    np.testing.assert_array_equal(values, np.tile(np.arange(256), 100))
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_an_empty_file_has_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert map_file(tmp_path / "empty").read() == b""


def test_what_cannot_be_mapped_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "none")
    with pytest.raises(OSError, match="directory"):
        map_file(tmp_path)


@linux
def test_a_mapping_keeps_no_descriptor_and_ends_with_its_last_view(path: Path) -> None:
    def mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    open_before = list(Path("/proc/self/fd").iterdir())
    reader = map_file(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == len(open_before)
    view = np.frombuffer(reader.read_buffer(10), np.uint8)
    del reader
    assert mapped()
    assert view.tolist() == list(range(10))
    del view
    assert not mapped()
