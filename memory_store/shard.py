"""One shard's state and operations: the rows it holds of each loaded generation, and the index over them."""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.errors import NoVectors
from memory_store.held_rows import HeldRows, SeenRows
from memory_store.index_files import IndexedRows, index_path, open_index
from memory_store.index_names import INDEX_FOLDER, main_name, main_parts
from memory_store.keeping import Piece, gaps, pays, pieces_of, rows_of
from memory_store.manifest import Manifest, Part, read_manifest
from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import parse_index
from memory_store.mips.registry import INDEXES, build_index
from memory_store.parts import FACTS_SCHEMA, dead_rows
from memory_store.placement import Slice, place
from memory_store.recall import RecallReport
from memory_store.rows import Rows
from memory_store.storage import Storage
from memory_store.topk import PartialTopK, merge, select

# N rows in this shard, B queries, K slots, D dimension, C fact ids asked for, F of them found here

__all__ = ["CopyStats", "FoundFacts", "FoundPlaces", "FoundVectors", "Shard", "ShardConfig", "ShardStats"]


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """All that a shard needs to find its rows again after a restart.

    threads: intra-op threads of its index. resident: how many generations stay loaded, so that the old one serves while
    the new one is loaded. recall_share: share of the queries that an approximate index answers again exactly, in the
    background, to know its recall. target_recall: the recall that it is to keep by looking further, or less far.
    replica: which copy of the shard this is.
    """

    url: str
    shard: int
    num_shards: int
    index: str = "exact"
    threads: int = 1
    resident: int = 2
    recall_share: float = 0.0
    target_recall: float | None = None
    replica: int = 0


@dataclass(frozen=True, kw_only=True)
class CopyStats:
    """One copy of a shard. serving: it is asked; a copy that is not is being brought back. pid: None where it did
    not answer."""

    replica: int
    serving: bool
    pid: int | None
    restarts: int


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """One line of `stats()`. bytes: mapped vectors plus what the index holds. restarts: as seen by the caller.

    rows: live ones; fresh_rows: those of them that are searched beside the main index: written since the last
    compaction, or so few that an approximate index was not built anew for them.
    recall: what the repeated searches say of an approximate index; None before the first, and for an exact one.
    device: where the main index is scanned: "cpu", or a GPU.
    copies: where a shard is served more than once; the line is then that of the first copy that serves, restarts are
    those of all copies. hedged: calls that were late and went to a second copy too; failed_over: calls that another
    copy answered because one failed.
    """

    shard: int
    rows: int
    bytes: int
    index: str
    generation: int
    generations_resident: tuple[int, ...]
    pid: int
    incarnation: str
    restarts: int = 0
    fresh_rows: int = 0
    recall: RecallReport | None = None
    copies: tuple[CopyStats, ...] = ()
    hedged: int = 0
    failed_over: int = 0
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class FoundFacts:
    """positions_F: where in the request each row of the table belongs."""

    positions_F: NDArray[np.int64]
    table: pa.Table


@dataclass(frozen=True, eq=False)
class FoundVectors:
    """positions_F: where in the request each row of vectors_FD (float32) belongs."""

    positions_F: NDArray[np.int64]
    vectors_FD: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundPlaces:
    """positions_F: where in the request each id stands; part_F: which part of the manifest holds it; row_F: where."""

    positions_F: NDArray[np.int64]
    part_F: NDArray[np.int64]
    row_F: NDArray[np.int64]


class _Snapshot:
    """The shard's rows of one generation: those of the main index, and the others, which are searched exactly."""

    def __init__(
        self, storage: Storage, manifest: Manifest, config: ShardConfig, others: Sequence["_Snapshot"] = ()
    ) -> None:
        """others: snapshots of this shard, whose main index serves here too where that is right and pays."""
        self._storage = storage
        self._config = config
        self.manifest = manifest
        placed = manifest.vectors or manifest.facts
        slices = place([part.rows for part in placed], config.num_shards)[config.shard]
        first_fresh = len(placed) - manifest.delta_parts
        self._dead = dead_rows(storage, manifest.facts, manifest.tombstones)
        main_slices = [piece for piece in slices if piece.part < first_fresh]
        self.wanted = pieces_of(manifest, main_slices)
        self.main: HeldRows = self._kept_main(others) or self._new_main(
            main_slices, others[-1].main if others else None
        )
        held = [self.main]
        beside = [
            Slice(part=main_slices[number].part, start=start, stop=stop)
            for number, start, stop in gaps(self.wanted, self.main.rows.pieces)
        ]
        if beside:
            held.append(self._kept_beside(beside, others) or self._exactly(beside, without_dead=False))
        self.beside = held[1:]
        fresh = [piece for piece in slices if piece.part >= first_fresh]
        vectors = manifest.vectors or (None,) * len(manifest.facts)
        parts = {pair: number for number, pair in enumerate(zip(manifest.facts, vectors, strict=True))}
        self._seen = [SeenRows(one, self._unseen(one), _positions(one.rows.pieces, parts)) for one in held]
        if fresh:
            one = self._exactly(fresh, without_dead=True)
            self._seen.append(SeenRows(one, np.zeros(0, dtype=np.int64), [piece.part for piece in fresh]))

    @property
    def num_rows(self) -> int:
        """Live rows."""
        return sum(seen.num_rows for seen in self._seen)

    @property
    def fresh_rows(self) -> int:
        """Live rows beside the main index."""
        return self.num_rows - self._seen[0].num_rows

    def search(self, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        """The best k live rows, of the main index and of those beside it together."""
        self.require_vectors()
        answers = [answer for seen in self._seen if (answer := seen.search(queries_BD, k)) is not None]
        if not answers:
            return select(np.zeros((len(queries_BD), 0), dtype=np.int64), np.zeros((len(queries_BD), 0)), k)
        return answers[0] if len(answers) == 1 else merge(answers, k)

    def find(self, fact_ids_C: NDArray[np.int64]) -> list[tuple[SeenRows, NDArray[np.int64], NDArray[np.int64]]]:
        """(rows, positions [F] in the request, row numbers [F]) of the ids that are live here: main first."""
        return [(seen, *seen.find(fact_ids_C)) for seen in self._seen]

    def require_vectors(self) -> None:
        if not self.manifest.vectors:
            raise NoVectors(
                f"expected embedded facts, found generation {self.manifest.generation} with facts but no vectors; "
                "run `hmn embed` or open an older generation"
            )

    @property
    def device(self) -> str:
        """Where the main index is scanned."""
        return str(getattr(self.main.index, "device", "cpu"))

    @property
    def nbytes(self) -> int:
        return sum(seen.held.nbytes for seen in self._seen)

    def _kept_main(self, others: Sequence["_Snapshot"]) -> HeldRows | None:
        """The main index of another generation: of one with the same main rows, whatever has been written since, else
        the one that leaves the fewest rows beside it, if it is approximate and worth it."""
        candidates: list[tuple[int, HeldRows]] = []  # with how many rows each would leave beside it
        for other in reversed(others):
            if other.manifest.dim != self.manifest.dim:
                continue
            if other.wanted == self.wanted:
                candidates.append((-1, other.main))
            elif isinstance(other.main.index, ApproximateIndex):  # to build an exact one is hardly more than to read it
                missing = rows_of(gaps(self.wanted, other.main.rows.pieces))
                gone = rows_of(gaps(other.main.rows.pieces, self.wanted))
                if pays(other.main.rows.num_rows, beside=missing, gone=gone):
                    candidates.append((missing, other.main))
        candidates.sort(key=lambda candidate: candidate[0])
        return next((main for _, main in candidates if main.rows.fits(self._unseen(main))), None)

    def _new_main(self, slices: Sequence[Slice], before: HeldRows | None) -> HeldRows:
        """before: what served until now, whose index knows the effort that its target takes."""
        config, manifest = self._config, self.manifest
        of_all = main_parts(manifest)
        count = self._saved_parts(of_all, slices) or len(of_all)
        slices = [piece for piece in slices if piece.part < count] if of_all else slices
        rows = Rows(self._storage, manifest, slices, self._dead, without_dead=False, threads=config.threads)
        if not rows.vectors.chunks:
            return HeldRows(rows, None)
        indexed = _indexed(of_all[:count], slices)
        index = open_index(self._storage, config.index, rows.vectors, config.threads, indexed)
        if isinstance(index, ApproximateIndex) and config.recall_share > 0:
            index.measure_recall(config.recall_share, config.target_recall)
            if config.target_recall is not None and before is not None:
                index.go_on_from(before.index)
        return HeldRows(rows, index)

    def _saved_parts(self, of_all: Sequence[Part], slices: Sequence[Slice]) -> int | None:
        """How many of the main parts, the first ones, an approximate index covers that was saved before the others
        came, if so few came that a shard that has it would keep it; None if there is none."""
        if not of_all or INDEXES[parse_index(self._config.index, INDEXES).name].exact:
            return None
        saved = set(self._storage.list(INDEX_FOLDER))
        for count in range(len(of_all), 0, -1):
            leading = [piece for piece in slices if piece.part < count]
            rows = sum(piece.rows for piece in leading)
            missing = sum(piece.rows for piece in slices) - rows
            if not pays(rows, beside=missing, gone=0) or not saved:
                break
            if index_path(self._config.index, _indexed(of_all[:count], leading)) in saved:
                return count
        return None

    def _kept_beside(self, slices: Sequence[Slice], others: Sequence["_Snapshot"]) -> HeldRows | None:
        """The same rows as another generation has beside its main index."""
        pieces = pieces_of(self.manifest, slices)
        held = (one for other in reversed(others) for one in other.beside if one.rows.pieces == pieces)
        return next((one for one in held if one.rows.fits(self._unseen(one))), None)

    def _exactly(self, slices: Sequence[Slice], *, without_dead: bool) -> HeldRows:
        """Rows that are few: any other index would have to be built for them at every change."""
        threads = self._config.threads
        rows = Rows(self._storage, self.manifest, slices, self._dead, without_dead=without_dead, threads=threads)
        return HeldRows(rows, build_index("exact", rows.vectors, threads) if rows.vectors.chunks else None)

    def _unseen(self, held: HeldRows) -> NDArray[np.int64]:
        return held.unseen(self.wanted, self._dead)


def _indexed(parts: Sequence[Part], slices: Sequence[Slice]) -> IndexedRows:
    """The name of an index over slices of these vectors parts."""
    return IndexedRows(
        main=main_name(parts),
        slices=tuple((parts[piece.part].checksum, piece.start, piece.stop) for piece in slices),
    )


def _positions(pieces: Sequence[Piece], parts: Mapping[tuple[Part, Part | None], int]) -> list[int]:
    """Where the parts of these pieces stand in a manifest; -1 for one that it does not name."""
    return [parts.get((piece.facts, piece.vectors), -1) for piece in pieces]


class Shard:
    """The rows of one shard, in every generation that is asked for; thread-safe.

    A generation is loaded when it is first needed, also by a search: that is all a restarted shard has to do to serve
    again. The least recently used generation beyond `config.resident` is let go, a proposed one first.
    """

    def __init__(self, config: ShardConfig) -> None:
        self.config = config
        self._incarnation = uuid4().hex
        self._storage = Storage(config.url)
        self._snapshots: OrderedDict[int, _Snapshot] = OrderedDict()
        self._snapshots_lock = threading.Lock()
        self._load_lock = threading.Lock()

    def load(self, generation: int) -> int:
        """Make a generation ready to search; returns its rows here. The generations in use go on serving."""
        return self._snapshot(generation).num_rows

    def search(self, generation: int, queries_BD: NDArray[np.float32], k: int) -> PartialTopK:
        """The best k rows of this shard in one generation; see MipsIndex.search."""
        return self._snapshot(generation).search(queries_BD, k)

    def fetch(self, generation: int, fact_ids_C: NDArray[np.int64], columns: Sequence[str] | None) -> FoundFacts:
        """The fact rows that this shard holds, as copies that outlive the mapping."""
        found = self._snapshot(generation).find(fact_ids_C)
        tables = []
        for seen, _, rows_F in found:
            if len(rows_F):
                tables.append(seen.take_facts(rows_F, columns))
        names = FACTS_SCHEMA.names if columns is None else list(columns)
        nothing = FACTS_SCHEMA.empty_table().select(names)
        positions_F = np.concatenate([positions for _, positions, _ in found])
        return FoundFacts(positions_F, pa.concat_tables(tables) if tables else nothing)

    def vectors(self, generation: int, fact_ids_C: NDArray[np.int64]) -> FoundVectors:
        """The stored vectors that this shard holds, as float32 copies."""
        snapshot = self._snapshot(generation)
        snapshot.require_vectors()
        found = snapshot.find(fact_ids_C)
        return FoundVectors(
            np.concatenate([positions for _, positions, _ in found]),
            np.concatenate([seen.held.rows.vectors.gather(rows_F) for seen, _, rows_F in found]),
        )

    def locate(self, generation: int, fact_ids_C: NDArray[np.int64]) -> FoundPlaces:
        """Where the live rows of these ids lie in the part files, for those that this shard holds."""
        found = self._snapshot(generation).find(fact_ids_C)
        places = [seen.places(rows_F) for seen, _, rows_F in found if len(rows_F)]
        nothing = np.zeros(0, dtype=np.int64)
        return FoundPlaces(
            positions_F=np.concatenate([positions for _, positions, _ in found]),
            part_F=np.concatenate([nothing, *(part for part, _ in places)]),
            row_F=np.concatenate([nothing, *(row for _, row in places)]),
        )

    def release(self, keep_generation: int) -> None:
        """Let every other generation go, now that no caller needs it any more."""
        with self._snapshots_lock:
            for generation in [held for held in self._snapshots if held != keep_generation]:
                del self._snapshots[generation]

    def stats(self, generation: int) -> ShardStats:
        """Rows, bytes and process of this shard, as it serves one generation."""
        snapshot = self._snapshot(generation)
        with self._snapshots_lock:
            resident = tuple(sorted(self._snapshots))
        return ShardStats(
            shard=self.config.shard,
            rows=snapshot.num_rows,
            fresh_rows=snapshot.fresh_rows,
            bytes=snapshot.nbytes,
            recall=snapshot.main.recall,
            index=self.config.index,
            generation=generation,
            generations_resident=resident,
            pid=os.getpid(),
            incarnation=self._incarnation,
            device=snapshot.device,
        )

    def describe(self) -> dict[str, Any]:
        """generations held, rows, bytes and device of the one used last; loads nothing, for somebody who only looks."""
        with self._snapshots_lock:
            held = list(self._snapshots.items())
        generation, newest = held[-1] if held else (None, None)
        return {
            "generation": generation,
            "generations_resident": sorted(number for number, _ in held),
            "rows": newest.num_rows if newest is not None else 0,
            "bytes": newest.nbytes if newest is not None else 0,
            "device": newest.device if newest is not None else "cpu",
        }

    def _snapshot(self, generation: int) -> _Snapshot:
        held = self._held(generation)
        if held is not None:
            return held
        with self._load_lock:  # one load at a time; whoever waited finds it done
            held = self._held(generation)
            if held is None:
                with self._snapshots_lock:
                    others = list(self._snapshots.values())
                held = _Snapshot(self._storage, read_manifest(self._storage, generation), self.config, others)
                self._hold(generation, held)
            return held

    def _held(self, generation: int) -> _Snapshot | None:
        with self._snapshots_lock:
            if generation in self._snapshots:
                self._snapshots.move_to_end(generation)
            return self._snapshots.get(generation)

    def _hold(self, generation: int, snapshot: _Snapshot) -> None:
        with self._snapshots_lock:
            self._snapshots[generation] = snapshot
            while len(self._snapshots) > self.config.resident:
                others = [held for held in self._snapshots if held != generation]
                # One that is proposed goes before one that answers, however long ago it last did.
                del self._snapshots[min(others, key=lambda held: held > 0)]
