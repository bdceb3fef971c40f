"""Compaction: fresh parts and parts with many dead rows into new parts; all others are kept as they are."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from memory_store.errors import ConfigError, GenerationConflict, HmnError
from memory_store.leases import leased
from memory_store.manifest import Change, CompactParts, Manifest, Part, read_manifest
from memory_store.parts import (
    FACTS_SCHEMA,
    TOMBSTONES_SCHEMA,
    dead_rows,
    fact_ids_of,
    live_rows,
    numbers,
    open_part,
    vectors_of,
    vectors_table,
    write_part,
)
from memory_store.progress import Progress, silent
from memory_store.receipts import part_of, read_receipt
from memory_store.storage import Storage
from memory_store.writer import most_part_rows
from memory_store.writes import commit_change

# M tombstones, n rows of an output

__all__ = ["Compaction", "CompactionPolicy", "CompactionSummary", "Output", "compact", "plan_compaction"]

_STAGING = "staging"
_STEM = f"{_STAGING}/compact-"
_PLAN_SUFFIX = ".plan.json"


@dataclass(frozen=True, kw_only=True)
class CompactionPolicy:
    """When a compaction is due, and which parts it takes. Pure.

    most_delta_parts, most_fresh_share: due when there are more fresh parts, or parts of tombstones, or more fresh rows
    for each row of the main index. most_dead_share: due when more of all rows are dead; a part of the main index with a
    larger share is rewritten, so that dropping a row costs at most 1 / most_dead_share rows of copying; with a smaller
    one its tombstones stay. least_rows: as long as fewer are fresh or dead, their shares do not matter: few are never a
    burden.
    """

    most_delta_parts: int = 64
    most_fresh_share: float = 0.1
    most_dead_share: float = 0.2
    least_rows: int = 8192

    def __post_init__(self) -> None:
        for name in ("most_delta_parts", "least_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} >= 1, found {getattr(self, name)}")
        for name in ("most_fresh_share", "most_dead_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"expected {name} from 0 to 1, found {getattr(self, name)}")

    def is_due(self, manifest: Manifest) -> bool:
        """Whether the memory has changed so much that compacting pays."""
        main = len(manifest.facts) - manifest.delta_parts
        main_rows = sum(part.rows for part in manifest.facts[:main])
        fresh_rows = sum(part.rows for part in manifest.facts[main:])
        dead = sum(part.rows for part in manifest.tombstones)
        if max(manifest.delta_parts, len(manifest.tombstones)) > self.most_delta_parts:
            return True
        return fresh_rows + dead >= self.least_rows and (
            fresh_rows > self.most_fresh_share * main_rows or dead > self.most_dead_share * (main_rows + fresh_rows)
        )


@dataclass(frozen=True, kw_only=True)
class Output:
    """One new part. sources: (position of the input, first live row, last live row + 1), in order."""

    sources: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What will be rewritten. facts, vectors: the parts taken; tombstones: those that were in force."""

    facts: tuple[Part, ...]
    vectors: tuple[Part, ...]
    tombstones: tuple[Part, ...]
    outputs: tuple[Output, ...]

    @property
    def compaction_id(self) -> str:
        """Names the new parts: depends on nothing but what they are made of."""
        return xxhash.xxh3_128_hexdigest(json.dumps(asdict(self), sort_keys=True).encode())[:20]


@dataclass(frozen=True, kw_only=True)
class CompactionSummary:
    """What a compaction did. parts: rewritten, of `all_parts`; resumed_parts: new ones that a killed run had left.

    rows: copied; dropped_rows: dead ones left out; bytes: written.
    """

    generation: int
    committed: bool
    parts: int
    all_parts: int
    resumed_parts: int
    rows: int
    dropped_rows: int
    bytes: int
    seconds: float


def plan_compaction(
    manifest: Manifest, dead: Mapping[str, int], *, most_dead_share: float, part_rows: int
) -> Compaction | None:
    """Which parts to rewrite into which, none if only tombstones are to be merged; pure. None where nothing would
    change. dead: dead rows by facts part.

    Taken are all fresh parts, the parts with a larger share of dead rows, and small parts beside them, smallest first,
    as long as each adds no more rows than are rewritten already: so a row is copied a logarithm of times as parts grow.
    """
    main = len(manifest.facts) - manifest.delta_parts
    live = [part.rows - dead.get(part.path, 0) for part in manifest.facts]
    taken = set(range(main, len(manifest.facts)))
    taken |= {
        number for number, part in enumerate(manifest.facts) if dead.get(part.path, 0) > most_dead_share * part.rows
    }
    if not sum(live):  # a memory keeps a part, however dead, because its vectors have a dimension
        return None
    if not taken:
        merged = Compaction(facts=(), vectors=(), tombstones=manifest.tombstones, outputs=())
        return merged if len(manifest.tombstones) > 1 else None
    rows = sum(live[number] for number in taken)
    for number in sorted(set(range(main)) - taken, key=lambda number: live[number]):
        if live[number] > min(rows, part_rows // 2):
            break
        taken.add(number)
        rows += live[number]
    chosen = sorted(taken)
    return Compaction(
        facts=tuple(manifest.facts[number] for number in chosen),
        vectors=tuple(manifest.vectors[number] for number in chosen) if manifest.vectors else (),
        tombstones=manifest.tombstones,
        outputs=_cut([live[number] for number in chosen], part_rows),
    )


def compact(
    storage: Storage,
    *,
    policy: CompactionPolicy | None = None,
    only_if_due: bool = False,
    part_rows: int | None = None,
    progress: Progress = silent,
) -> CompactionSummary:
    """Rewrite what changed into parts for the main index and commit a generation with the same facts.

    Costs what was written and deleted since the last compaction, not what the memory holds. Writes that are committed
    meanwhile are carried over. Killed at any instant, the memory is as it was, and the next compaction uses the parts
    that are done. Raises GenerationConflict if the parts were replaced meanwhile (by an ingest, an embedding, another
    compaction); then nothing has changed.
    """
    started_s = time.monotonic()
    policy = policy or CompactionPolicy()
    current = read_manifest(storage)
    if only_if_due and not policy.is_due(current):
        return _summary(current, None, [], 0, started_s)
    with leased(storage, current_only=True) as (generation,):  # a sweep meanwhile would look like damage
        current = read_manifest(storage, generation)
        plan = _left_behind(storage, current)
        if plan is None:
            all_dead = dead_rows(storage, current.facts, current.tombstones)
            plan = plan_compaction(
                current,
                {path: len(rows) for path, rows in all_dead.items()},
                most_dead_share=policy.most_dead_share,
                part_rows=most_part_rows(part_rows, current.dim, current.dtype),
            )
        if plan is None:
            return _summary(current, None, [], 0, started_s)
        return _carry_out(storage, plan, started_s, progress)


def _carry_out(storage: Storage, plan: Compaction, started_s: float, progress: Progress) -> CompactionSummary:
    dead = dead_rows(storage, plan.facts, plan.tombstones)
    storage.write_atomic(f"{_stem(plan)}{_PLAN_SUFFIX}", json.dumps(asdict(plan)).encode())
    written: list[tuple[Part, Part | None]] = []
    resumed = 0
    for number in range(len(plan.outputs)):
        pair, was_there = _write_output(storage, plan, number, dead)
        written.append(pair)
        resumed += was_there
        progress("compact", number + 1, len(plan.outputs), unit="parts")
    manifest = commit_change(
        storage,
        lambda now: _assemble(storage, plan, written, now),
        commit_id=f"compact-{plan.compaction_id}",
        note=f"compaction of {len(plan.facts)} parts into {len(plan.outputs)}"
        if plan.facts
        else f"compaction of {len(plan.tombstones)} parts of tombstones",
    )
    _forget(storage, _stem(plan))
    return _summary(manifest, plan, written, resumed, started_s)


def _cut(live: Sequence[int], part_rows: int) -> tuple[Output, ...]:
    """The live rows of all inputs, end to end, cut into outputs of part_rows."""
    bounds = np.concatenate([[0], np.cumsum(live)])
    outputs = []
    for first in range(0, int(bounds[-1]), part_rows):
        last = min(first + part_rows, int(bounds[-1]))
        sources = [
            (number, max(first, start) - start, min(last, stop) - start)
            for number, (start, stop) in enumerate(pairwise(bounds.tolist()))
            if start < last and stop > first
        ]
        outputs.append(Output(sources=tuple(sources)))
    return tuple(outputs)


def _write_output(
    storage: Storage, plan: Compaction, number: int, dead: Mapping[str, NDArray[np.int64]]
) -> tuple[tuple[Part, Part | None], bool]:
    """(facts part, vectors part) of one output, and whether a killed run had left them."""
    receipt = f"{_stem(plan)}-{number:05d}.json"
    name = f"compact-{plan.compaction_id}-{number:05d}.arrow"
    paths = [f"facts/{name}", f"vectors/{name}"][: 2 if plan.vectors else 1]

    def parsed(fields: Any) -> list[Part]:
        return [part_of(given, path) for given, path in zip(fields, paths, strict=True)]

    left = read_receipt(storage, receipt, parsed)
    if left and all(storage.exists(part.path) and storage.size(part.path) == part.bytes for part in left):
        return (left[0], left[1] if plan.vectors else None), True
    tables: list[pa.Table] = []
    blocks: list[Any] = []
    for source, first, last in plan.outputs[number].sources:
        part = plan.facts[source]
        rows_n = live_rows(part.rows, dead.get(part.path))[first:last]
        tables.append(open_part(storage, part, FACTS_SCHEMA).take(pa.array(rows_n)))
        if plan.vectors:
            blocks.append(vectors_of(open_part(storage, plan.vectors[source]))[rows_n])
    facts = pa.concat_tables(tables)
    facts_part = write_part(storage, f"facts/{name}", facts)
    vectors_part = None
    if blocks:
        table = vectors_table(fact_ids_of(facts), np.concatenate(blocks))
        vectors_part = write_part(storage, f"vectors/{name}", table)
    done = [asdict(part) for part in (facts_part, vectors_part) if part]
    storage.write_atomic(receipt, json.dumps(done).encode())
    return (facts_part, vectors_part), False


def _assemble(storage: Storage, plan: Compaction, written: Sequence[tuple[Part, Part | None]], now: Manifest) -> Change:
    """The current generation with the rewritten parts in place of those they were made of."""
    if not _still_applies(plan, now):
        raise GenerationConflict(
            f"the parts that were being compacted are not those of generation {now.generation} of {storage.shown} any "
            "more: another writer replaced them; run again"
        )
    taken = {part.path for part in plan.facts}
    kept = [number for number, part in enumerate(now.facts) if part.path not in taken]
    main = [number for number in kept if number < len(now.facts) - now.delta_parts]
    fresh = kept[len(main) :]
    outputs = tuple(facts for facts, _ in written)
    vectors = tuple(part for _, part in written if part)
    return CompactParts(
        facts=(*(now.facts[number] for number in main), *outputs, *(now.facts[number] for number in fresh)),
        vectors=(*(now.vectors[number] for number in main), *vectors, *(now.vectors[number] for number in fresh))
        if now.vectors
        else (),
        tombstones=_carry_tombstones(storage, plan, outputs, now),
        delta_parts=len(fresh),
    )


def _carry_tombstones(storage: Storage, plan: Compaction, outputs: Sequence[Part], now: Manifest) -> tuple[Part, ...]:
    """The tombstones that still name a row, as one part: of kept parts as they are, of rewritten parts where the row
    went; those that the rewriting carried out are gone."""
    dead = dead_rows(storage, plan.facts, plan.tombstones)
    moved = _Moved(plan, [live_rows(part.rows, dead.get(part.path)) for part in plan.facts])
    source_of = {part.path: number for number, part in enumerate(plan.facts)}
    ids: list[NDArray[np.int64]] = []
    paths: list[str] = []
    rows: list[NDArray[np.int64]] = []
    for part in now.tombstones:
        table = open_part(storage, part, TOMBSTONES_SCHEMA)
        named = table.column("part").combine_chunks()
        id_M, row_M, code_M = fact_ids_of(table), numbers(table.column("row")), numbers(named.indices)
        for code, path in enumerate(named.dictionary.to_pylist()):
            own_M = code_M == code
            if path not in source_of:
                ids.append(id_M[own_M])
                rows.append(row_M[own_M])
                paths += [path] * int(own_M.sum())
                continue
            output_M, at_M = moved.find(source_of[path], row_M[own_M])
            still_M = output_M >= 0
            ids.append(id_M[own_M][still_M])
            rows.append(at_M[still_M])
            paths += [outputs[number].path for number in output_M[still_M].tolist()]
    if not paths:
        return ()
    columns = [
        pa.array(np.concatenate(ids)),
        pa.array(paths, pa.string()).dictionary_encode(),
        pa.array(np.concatenate(rows)),
    ]
    path = f"tombstones/compact-{plan.compaction_id}-{now.generation:08d}.arrow"
    return (write_part(storage, path, pa.table(columns, schema=TOMBSTONES_SCHEMA)),)


class _Moved:
    """Where the rows of the inputs went; arithmetic on the plan."""

    def __init__(self, plan: Compaction, live_by_source: Sequence[NDArray[np.int64]]) -> None:
        self._live = live_by_source
        self._starts = np.concatenate([[0], np.cumsum([len(live) for live in live_by_source])])
        sizes = [sum(last - first for _, first, last in output.sources) for output in plan.outputs]
        self._output_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def find(self, source: int, rows_M: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(output [M], row in it [M]); output -1 for a row that was dead, and so left out."""
        live = self._live[source]
        if not len(live):
            return np.full(len(rows_M), -1), rows_M
        rank_M = np.searchsorted(live, rows_M)
        was_live_M = live[rank_M.clip(max=len(live) - 1)] == rows_M
        place_M = self._starts[source] + rank_M
        output_M = np.searchsorted(self._output_starts, place_M, side="right") - 1
        at_M = place_M - self._output_starts[output_M.clip(max=len(self._output_starts) - 1)]
        return np.where(was_live_M, output_M, -1), at_M


def _still_applies(plan: Compaction, now: Manifest) -> bool:
    held = set(zip(now.facts, now.vectors, strict=True)) if now.vectors else {(part, None) for part in now.facts}
    wanted = set(zip(plan.facts, plan.vectors, strict=True)) if plan.vectors else {(part, None) for part in plan.facts}
    alike = not plan.facts or bool(now.vectors) == bool(plan.vectors)
    return alike and wanted <= held and set(plan.tombstones) <= set(now.tombstones)


def _left_behind(storage: Storage, now: Manifest) -> Compaction | None:
    """The plan of a compaction that was killed, if it can still be carried out; what cannot be is removed."""
    found = None
    for path in storage.list(_STAGING):
        if not (path.startswith(_STEM) and path.endswith(_PLAN_SUFFIX)):
            continue
        stem = path.removesuffix(_PLAN_SUFFIX)
        plan = read_receipt(storage, path, partial(_parsed, stem))
        if found is None and plan is not None and _still_applies(plan, now):
            found = plan
        else:
            _forget(storage, stem)
    return found


def _parsed(stem: str, fields: Any) -> Compaction:
    plan = Compaction(
        **{name: tuple(part_of(part) for part in fields[name]) for name in ("facts", "vectors", "tombstones")},
        outputs=tuple(
            Output(sources=tuple((int(a), int(b), int(c)) for a, b, c in output["sources"]))
            for output in fields["outputs"]
        ),
    )
    if _stem(plan) != stem:
        raise ValueError(f"expected the plan that its name is made of, found that of {_stem(plan)}")
    return plan


def _forget(storage: Storage, stem: str) -> None:
    """Remove a plan and its receipts; parts that no generation names are left to sweep."""
    with suppress(HmnError):  # what stays is removed by the next compaction; what was committed is committed
        for path in storage.list(_STAGING):
            if path == f"{stem}{_PLAN_SUFFIX}" or path.startswith(f"{stem}-"):
                storage.delete(path)


def _stem(plan: Compaction) -> str:
    return f"{_STEM}{plan.compaction_id}"


def _summary(
    manifest: Manifest,
    plan: Compaction | None,
    written: Sequence[tuple[Part, Part | None]],
    resumed: int,
    started_s: float,
) -> CompactionSummary:
    parts = [part for pair in written for part in pair if part]
    rows = sum(facts.rows for facts, _ in written)
    return CompactionSummary(
        generation=manifest.generation,
        committed=plan is not None,
        parts=len(plan.facts) if plan else 0,
        all_parts=len(manifest.facts),
        resumed_parts=resumed,
        rows=rows,
        dropped_rows=sum(part.rows for part in plan.facts) - rows if plan else 0,
        bytes=sum(part.bytes for part in parts),
        seconds=time.monotonic() - started_s,
    )
