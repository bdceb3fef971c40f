"""The protocol every MIPS index follows, the rows it is built over, and the registry of index names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import DimensionMismatch, InvalidVectors, UnknownIndex
from memory_store.topk import PartialTopK
from memory_store.vectors import StoredVectors, widened

# N rows in the shard, D dimension, B queries, K slots, C rows gathered

__all__ = [
    "IndexSpec",
    "MipsIndex",
    "RegisteredIndex",
    "SavedArrays",
    "ShardVectors",
    "check_queries",
    "parse_index",
]


@dataclass(frozen=True, eq=False)
class ShardVectors:
    """The rows of one shard, as slices mapped from part files; nothing is copied until an index asks for it.

    fact_ids_N: int64, unique, in row order (not sorted). chunks: arrays [n_i, D] as they are stored, read-only, whose
    concatenation is the N rows.
    """

    fact_ids_N: NDArray[np.int64]
    chunks: Sequence[StoredVectors]
    dim: int

    @property
    def num_rows(self) -> int:
        return len(self.fact_ids_N)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Row number of each chunk's first row, and N at the end."""
        return np.concatenate([[0], np.cumsum([len(chunk) for chunk in self.chunks])]).astype(np.int64)

    def gather(self, rows_C: NDArray[np.int64], out_CD: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Copy rows [C] out as float32 [C, D], in the order asked; into out_CD if given."""
        if out_CD is None:
            out_CD = np.empty((len(rows_C), self.dim), dtype=np.float32)
        chunk_C = np.searchsorted(self.starts, rows_C, side="right") - 1
        if (chunk_C[1:] < chunk_C[:-1]).any():
            order_C = np.argsort(chunk_C, kind="stable")
            out_CD[order_C] = self.gather(rows_C[order_C])
            return out_CD
        ends = np.searchsorted(chunk_C, np.arange(len(self.chunks) + 1))
        for number in map(int, np.flatnonzero(ends[1:] > ends[:-1])):
            piece_CD = out_CD[ends[number] : ends[number + 1]]
            piece_rows_C = rows_C[ends[number] : ends[number + 1]] - self.starts[number]
            chunk = self.chunks[number]
            if chunk.dtype == np.float32:
                chunk.take(piece_rows_C, axis=0, out=piece_CD, mode="clip")  # the default mode would copy once more
            else:
                piece_CD[...] = widened(chunk[piece_rows_C])
        return out_CD

    def groups_in_chunks(
        self, groups_P: NDArray[np.int64], size: int
    ) -> Iterator[tuple[NDArray[np.float32], int, slice]]:
        """(chunk, number of its first row, slice of those groups, ascending, that lie in it wholly), for every chunk of
        contiguous float32 that holds any; see `gather_groups`."""
        for chunk, start in zip(self.chunks, self.starts.tolist(), strict=False):
            first, last = -(-start // size), (start + len(chunk)) // size
            here = slice(*np.searchsorted(groups_P, [first, max(last, first)]))
            if here.start < here.stop and chunk.dtype == np.float32 and chunk.flags.c_contiguous:
                yield cast(NDArray[np.float32], chunk), start, here

    def gather_groups(self, groups_P: NDArray[np.int64], size: int, out_nD: NDArray[np.float32]) -> None:
        """Copy groups of rows, ascending, into out_nD [P * size, D]; rows past the last one repeat it.

        Group g is the rows g * size to (g + 1) * size. Each is copied at once where it lies in one chunk.
        """
        whole_P = np.zeros(len(groups_P), dtype=np.bool_)
        out_Pv = out_nD.reshape(len(groups_P), size * self.dim)
        for chunk, start, here in self.groups_in_chunks(groups_P, size):
            first, last = -(-start // size), (start + len(chunk)) // size
            chunk_gv = chunk[first * size - start : last * size - start].reshape(last - first, size * self.dim)
            chunk_gv.take(groups_P[here] - first, axis=0, out=out_Pv[here], mode="clip")
            whole_P[here] = True
        rest_P = np.flatnonzero(~whole_P)
        if len(rest_P):
            rows_n = (groups_P[rest_P, None] * size + np.arange(size)).ravel()
            out_Pv[rest_P] = self.gather(np.minimum(rows_n, self.num_rows - 1)).reshape(len(rest_P), size * self.dim)


class MipsIndex(Protocol):
    """Maximum inner product search over the rows of one shard."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory the index holds beyond the mapped part files."""
        ...

    def search(self, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        """The k facts of largest inner product per query; C-contiguous float32 finite queries, k >= 1.

        Scores are true inner products of the stored rows, computed in float64 (exact products of float32 values).
        Pads with -1 / -inf when the shard holds fewer than k rows. Thread-safe.
        """
        ...


def check_queries(queries_BD: NDArray[np.float32], dim: int, k: int) -> NDArray[np.float32]:
    """The queries as C-contiguous float32 [B, dim]; refuses another shape, NaN, infinity and k < 1."""
    if queries_BD.ndim != 2 or queries_BD.shape[1] != dim:
        raise DimensionMismatch(f"expected queries of shape [batch, {dim}], found {list(queries_BD.shape)}")
    if k < 1:
        raise ValueError(f"expected k >= 1, found {k}")
    # Values beyond float32 become infinite here and are refused with the others, so the cast itself need not warn.
    with np.errstate(over="ignore", invalid="ignore"):
        checked_BD = np.ascontiguousarray(queries_BD, dtype=np.float32)
    finite_B = np.isfinite(checked_BD).all(axis=1)
    if not finite_B.all():
        first = int(np.flatnonzero(~finite_B)[0])
        raise InvalidVectors(f"query {first} holds NaN or infinity (as float32); every value must be finite")
    return checked_BD


@dataclass(frozen=True)
class IndexSpec:
    """A parsed index name: `ivf?nlist=1024&nprobe=8` is IndexSpec("ivf", {"nlist": "1024", "nprobe": "8"}).

    argument: what follows a colon, as in `faiss:IVF1024,PQ32`.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    argument: str = ""


IndexBuilder = Callable[[ShardVectors, IndexSpec, int], MipsIndex]
"""(vectors, parsed name, threads) -> a built index."""

SavedArrays = Mapping[str, NDArray[Any]]
"""All that an index needs beside the vectors to be used again, by name."""

IndexRestorer = Callable[[ShardVectors, IndexSpec, int, SavedArrays], MipsIndex]
"""(vectors, parsed name, threads, what `saved_arrays` of the built index gave) -> the index, without building it."""


@dataclass(frozen=True, kw_only=True)
class RegisteredIndex:
    """One line of `hmn indexes`.

    options: what each means. argument: what must follow the name and a colon; empty where nothing may. bytes_needed:
    (parsed name, rows, dimension) -> bytes that the index will hold in main memory, at most; gpu_bytes_needed: on a
    GPU, if it can use one. restore: None where building is as quick as reading, so that nothing is saved.
    search_options: those that a built index may be searched with in any way.
    """

    name: str
    summary: str
    exact: bool
    options: Mapping[str, str] = field(default_factory=dict)
    argument: str = ""
    build: IndexBuilder
    bytes_needed: Callable[[IndexSpec, int, int], int]
    gpu_bytes_needed: Callable[[IndexSpec, int, int], int] | None = None
    restore: IndexRestorer | None = None
    search_options: tuple[str, ...] = ()


def parse_index(text: str, known: Mapping[str, RegisteredIndex]) -> IndexSpec:
    """Parse `name?option=value&...` or `name:argument?...`; raises UnknownIndex, with the nearest known name if any."""
    head, _, query = text.partition("?")
    name, _, argument = head.partition(":")
    if name not in known:
        raise UnknownIndex(f"unknown index {name!r}; {_nearest(name, known)}; `hmn indexes` lists them all")
    if bool(argument) != bool(known[name].argument):
        expected = f"{name}:<{known[name].argument}>" if known[name].argument else f"{name!r} without a colon"
        raise UnknownIndex(f"expected {expected}, found {head!r}; `hmn indexes` lists them all")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in known[name].options:
            raise UnknownIndex(f"index {name!r} has no option {option!r}; {_nearest(option, known[name].options)}")
    return IndexSpec(name, options, argument)


def _nearest(word: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
