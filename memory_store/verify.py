"""Verification of a memory: every byte of every part, and what must hold between parts, reported and not raised."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from memory_store.errors import CorruptFile, HmnError, InvalidVectors
from memory_store.ids import IdSet
from memory_store.leases import leased
from memory_store.manifest import Manifest, Part, read_manifest
from memory_store.parts import (
    FACTS_SCHEMA,
    TOMBSTONES_SCHEMA,
    drop_damaged_copy,
    fact_ids_of,
    live_rows,
    numbers,
    open_stored_part,
    vectors_of,
    vectors_schema,
)
from memory_store.storage import Storage
from memory_store.vectors import max_norm

# N rows of a part

__all__ = ["GenerationCheck", "VerifyReport", "verify_memory"]

_NORM_TOLERANCE = 1e-12  # float64 sums may be ordered differently from one numpy to the next


@dataclass(frozen=True, kw_only=True)
class GenerationCheck:
    """What verification found in one generation; it can be served if there are no problems."""

    generation: int
    facts: int
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What verification read and found. parts and bytes count every file once, however many generations share it.

    dropped_copies: parts of a remote memory of which this machine's cache held a damaged copy. It is fetched again when
    the part is read next, and is no problem of the memory.
    """

    url: str
    generations: tuple[GenerationCheck, ...]
    parts: int
    bytes: int
    dropped_copies: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """Every problem once, in the order found."""
        return tuple(dict.fromkeys(problem for check in self.generations for problem in check.problems))


def verify_memory(
    url: str | os.PathLike[str] | Storage,
    *,
    current_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every byte of every part of every generation (or of the current one) and check what a reader relies on.

    Checked: manifests; size, checksum, schema and values of parts; facts and vectors hold the same ids in the same
    order; tombstones name rows that are there, by their ids, and once; ids of live rows are unique and not negative;
    vectors are finite and within max_norm; each parent is the one named.
    Of a remote memory it is what the storage holds that is read, and not what this machine's cache holds of it; a copy
    in the cache that is damaged is dropped.
    progress: called with (bytes read, bytes in all). Raises MemoryNotFound; everything else is in the report.
    """
    storage = url if isinstance(url, Storage) else Storage(url)
    with leased(storage, current_only=current_only) as chosen:  # a sweep meanwhile would look like damage
        return _verify(storage, chosen, progress)


def _verify(storage: Storage, chosen: Sequence[int], progress: Callable[[int, int], None] | None) -> VerifyReport:
    manifests: dict[int, Manifest | HmnError] = {}
    for generation in chosen:
        try:
            manifests[generation] = read_manifest(storage, generation)
        except HmnError as error:
            manifests[generation] = error
    readable = [manifest for manifest in manifests.values() if isinstance(manifest, Manifest)]
    parts = {part for manifest in readable for part in manifest.facts + manifest.vectors + manifest.tombstones}
    verifier = _Verifier(storage, parts, progress)
    checks = []
    for generation, manifest in manifests.items():
        if isinstance(manifest, Manifest):
            problems = [*_check_parent(storage, manifest, manifests), *verifier.check(manifest)]
            facts = manifest.fact_count
        else:
            problems, facts = [str(manifest)], 0
        checks.append(GenerationCheck(generation=generation, facts=facts, problems=tuple(problems)))
    return VerifyReport(
        url=storage.shown,
        generations=tuple(checks),
        parts=len(verifier.parts),
        bytes=verifier.total_bytes,
        dropped_copies=tuple(sorted(verifier.dropped_copies)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Contents:
    """What is kept of a sound part: ids of facts for uniqueness, their hash for alignment, the norm of vectors."""

    fact_ids_N: NDArray[np.int64]
    ids_hash: str
    norm: float


class _Verifier:
    """Reads every part once and remembers what it found."""

    def __init__(self, storage: Storage, parts: set[Part], progress: Callable[[int, int], None] | None) -> None:
        self.parts = parts
        self.total_bytes = sum(part.bytes for part in parts)
        self.dropped_copies: set[str] = set()
        self._storage = storage
        self._progress = progress
        self._read: dict[tuple[Part, int, str | None], _Contents | str] = {}
        self._read_parts: set[Part] = set()
        self._tombstones: dict[Part, pa.Table | str] = {}
        self._unique: dict[tuple[tuple[Part, ...], ...], list[str]] = {}

    def check(self, manifest: Manifest) -> list[str]:
        facts = [self._contents(part, FACTS_SCHEMA, 0, None) for part in manifest.facts]
        problems = [found for found in facts if isinstance(found, str)]
        if manifest.dtype is not None:
            schema = vectors_schema(manifest.dim, manifest.dtype)
            for facts_part, facts_found, part in zip(manifest.facts, facts, manifest.vectors, strict=True):
                found = self._contents(part, schema, manifest.dim, manifest.dtype)
                if isinstance(found, str):
                    problems.append(found)
                    continue
                problems += self._check_norm(manifest, part, found)
                if isinstance(facts_found, _Contents) and facts_found.ids_hash != found.ids_hash:
                    problems.append(
                        f"{self._storage.where(part.path)}: expected the fact ids of {facts_part.path} in the same "
                        "order, found others; embed again"
                    )
        dead, wrong = self._check_tombstones(manifest, facts)
        return problems + wrong + self._check_unique(manifest, facts, dead)

    def _contents(self, part: Part, schema: pa.Schema, dim: int, dtype: str | None) -> _Contents | str:
        """The part's contents, or the problem with it; read once for all generations that read it the same way."""
        key = (part, dim, dtype)
        if key not in self._read:
            try:
                self._read[key] = self._open(part, schema)
            except HmnError as error:
                self._read[key] = str(error)
            self._note_read(part)
        return self._read[key]

    def _open(self, part: Part, schema: pa.Schema) -> _Contents:
        table = self._open_stored(part, schema)
        where = self._storage.where(part.path)
        try:
            table.validate(full=True)
        except pa.ArrowInvalid as error:
            raise CorruptFile(f"{where}: expected valid Arrow data, found {error}; build the memory again") from None
        fact_ids_N = np.array(fact_ids_of(table))  # copied, so that the mapping can be let go
        if len(fact_ids_N) and int(fact_ids_N.min()) < 0:
            raise CorruptFile(f"{where}: expected fact ids of at least 0, found {fact_ids_N.min()}; build it again")
        try:
            norm = max_norm(vectors_of(table), fact_ids_N) if "vector" in table.schema.names else 0.0
        except InvalidVectors as error:
            raise CorruptFile(f"{where}: {error}") from None
        return _Contents(fact_ids_N=fact_ids_N, ids_hash=xxhash.xxh3_128_hexdigest(fact_ids_N.data), norm=norm)

    def _open_stored(self, part: Part, schema: pa.Schema) -> pa.Table:
        if drop_damaged_copy(self._storage, part):
            self.dropped_copies.add(part.path)
        return open_stored_part(self._storage, part, schema)

    def _check_norm(self, manifest: Manifest, part: Part, found: _Contents) -> list[str]:
        if found.norm <= manifest.max_norm * (1 + _NORM_TOLERANCE):
            return []
        return [
            f"{self._storage.where(part.path)}: expected norms of at most {manifest.max_norm!r}, which generation "
            f"{manifest.generation} states, found {found.norm!r}; embed again"
        ]

    def _check_tombstones(
        self, manifest: Manifest, facts: list[_Contents | str]
    ) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
        """(dead rows by the path of their facts part, problems)"""
        dead: dict[str, NDArray[np.int64]] = {}
        problems = []
        contents = {part.path: found for part, found in zip(manifest.facts, facts, strict=True)}
        for part in manifest.tombstones:
            table = self._read_tombstones(part)
            if isinstance(table, str):
                problems.append(table)
                continue
            where = self._storage.where(part.path)
            named, row_N = table.column("part").combine_chunks(), numbers(table.column("row"))
            for code, path in enumerate(named.dictionary.to_pylist()):
                of_part_N = numbers(named.indices) == code
                rows, fact_ids = row_N[of_part_N], fact_ids_of(table)[of_part_N]
                held = contents.get(path)
                if held is None:
                    problems.append(f"{where}: expected rows of parts of the generation, found {path}; build it again")
                    continue
                if isinstance(held, str):
                    continue  # reported with the part itself
                within_N = (rows >= 0) & (rows < len(held.fact_ids_N))
                if not within_N.all() or (held.fact_ids_N[rows] != fact_ids).any():
                    problems.append(f"{where}: expected the rows and ids of {path}, found others; build it again")
                    continue
                before = dead.get(path, np.zeros(0, dtype=np.int64))
                dead[path] = np.concatenate([before, rows])
                if len(np.unique(dead[path])) != len(dead[path]):
                    problems.append(f"{where}: expected every row of {path} once, found one again; build it again")
        return dead, problems

    def _read_tombstones(self, part: Part) -> pa.Table | str:
        if part not in self._tombstones:
            try:
                self._tombstones[part] = self._open_stored(part, TOMBSTONES_SCHEMA)
            except HmnError as error:
                self._tombstones[part] = str(error)
            self._note_read(part)
        return self._tombstones[part]

    def _check_unique(
        self, manifest: Manifest, facts: list[_Contents | str], dead: dict[str, NDArray[np.int64]]
    ) -> list[str]:
        key = (manifest.facts, manifest.tombstones)
        if key not in self._unique:
            ids, problems = IdSet(), []
            for part, found in zip(manifest.facts, facts, strict=True):
                if not isinstance(found, _Contents):
                    continue
                live = live_rows(len(found.fact_ids_N), dead.get(part.path))
                twice = ids.add(found.fact_ids_N[live])
                if twice is not None:
                    where = self._storage.where(part.path)
                    problems.append(f"{where}: expected every fact id once, found {twice} again; build it again")
            self._unique[key] = problems
        return self._unique[key]

    def _note_read(self, part: Part) -> None:
        self._read_parts.add(part)
        if self._progress is not None:
            self._progress(sum(read.bytes for read in self._read_parts), self.total_bytes)


def _check_parent(storage: Storage, manifest: Manifest, manifests: dict[int, Manifest | HmnError]) -> list[str]:
    parent = manifests.get(manifest.parent) if manifest.parent is not None else None
    if not isinstance(parent, Manifest) or parent.commit_id == manifest.parent_commit:
        return []  # a parent that was swept cannot be compared
    return [
        f"{storage.shown}: generation {manifest.generation} expected commit {manifest.parent_commit} as its parent "
        f"{manifest.parent}, found {parent.commit_id}; the history was rewritten, restore it from a copy"
    ]
