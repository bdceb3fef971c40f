"""Files mapped for reading, which are let go without holding up the threads of this process."""

import ctypes
import mmap
import os
import weakref
from functools import cache
from pathlib import Path

import pyarrow as pa

__all__ = ["map_file"]

_FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> ctypes.CDLL:
    """The C library, whose calls let go of the interpreter's lock."""
    library = ctypes.CDLL(None, use_errno=True)
    numbers = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
    library.mmap.restype, library.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *numbers]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


class _Mapping:
    """Mapped until nothing refers to it any more."""

    def __init__(self, descriptor: int, size: int) -> None:
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address = address
        weakref.finalize(self, _libc().munmap, address, size).atexit = False


def map_file(path: Path) -> pa.NativeFile:
    """The file as it is now, which need not keep its name; what is read of it are views of the mapping. Raises OSError.

    Arrow's own mapping holds the interpreter's lock while it is let go. For half a gigabyte of a file that was deleted
    meanwhile, as that of an old generation is, the kernel takes 0.13 s, in which no search would go on. Python's keeps
    a file descriptor open for each.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:  # nothing to map
            return pa.BufferReader(b"")
        mapping = _Mapping(file.fileno(), size)
    return pa.BufferReader(pa.foreign_buffer(mapping.address, size, base=mapping))
