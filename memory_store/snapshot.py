"""One generation as one shard holds it: rows of the main index, and the others, which are searched exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import NoVectors
from memory_store.held_rows import HeldRows, SeenRows
from memory_store.index_files import IndexedRows, index_path, open_index
from memory_store.index_names import INDEX_FOLDER, main_name, main_parts
from memory_store.keeping import MOST_DEAD, Piece, gaps, pays, pieces_of, rows_of, runs
from memory_store.manifest import Manifest, Part
from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import parse_index
from memory_store.mips.few_rows import index_exactly
from memory_store.mips.registry import INDEXES
from memory_store.parts import Tombstones, dead_of, read_tombstones
from memory_store.placement import Slice, place
from memory_store.rows import Rows
from memory_store.storage import Storage
from memory_store.topk import PartialTopK, merge, select

# B queries, K slots, D dimension, C fact ids asked for, F of them found, M rows that are not seen

__all__ = ["ShardConfig", "Snapshot"]

_SLOW_TO_BUILD = 1 << 17  # rows of an exact index in main memory, which takes about 50 ms


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


class Snapshot:
    """The shard's rows of one generation: those of the main index, and the others, which are searched exactly."""

    def __init__(
        self, storage: Storage, manifest: Manifest, config: ShardConfig, others: Sequence["Snapshot"] = ()
    ) -> None:
        """others: snapshots of this shard, whose main index, runs and tombstones serve here too where that is right."""
        self._storage = storage
        self._config = config
        self.manifest = manifest
        placed = manifest.vectors or manifest.facts
        slices = place([part.rows for part in placed], config.num_shards)[config.shard]
        first_fresh = len(placed) - manifest.delta_parts
        known: dict[Part, Tombstones] = {part: read for other in others for part, read in other.tombstones.items()}
        self.tombstones: Mapping[Part, Tombstones] = {
            part: known[part] if part in known else read_tombstones(storage, part) for part in manifest.tombstones
        }
        self._dead = dead_of(storage, manifest.facts, self.tombstones)
        main_slices = [piece for piece in slices if piece.part < first_fresh]
        self.wanted = pieces_of(manifest, main_slices)
        self.main: HeldRows = self._kept_main(others) or self._new_main(
            main_slices, others[-1].main if others else None
        )
        beside = [
            Slice(part=main_slices[number].part, start=start, stop=stop)
            for number, start, stop in gaps(self.wanted, self.main.rows.pieces)
        ]
        self.runs = self._runs(beside + [piece for piece in slices if piece.part >= first_fresh], others)
        vectors = manifest.vectors or (None,) * len(manifest.facts)
        parts = {pair: number for number, pair in enumerate(zip(manifest.facts, vectors, strict=True))}
        unseen = [(self.main, self._unseen(self.main)), *((run, run.rows.dead_here(self._dead)) for run in self.runs)]
        self._seen = [SeenRows(held, dead_M, _positions(held.rows.pieces, parts)) for held, dead_M in unseen]

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
    def is_slow_to_build(self) -> bool:
        """Whether building the main index takes longer than rows beside it cost in searches."""
        is_exact = not isinstance(self.main.index, ApproximateIndex)
        return _is_slow_to_build(self.main.rows.num_rows, is_exact=is_exact, device=self.device)

    @property
    def nbytes(self) -> int:
        return sum(seen.held.nbytes for seen in self._seen)

    def _kept_main(self, others: Sequence["Snapshot"]) -> HeldRows | None:
        """The main index of another generation: of one with the same main rows, whatever has been written since, else
        the one that leaves the fewest rows beside it, if it is slow to build and worth it."""
        candidates: list[tuple[int, HeldRows]] = []  # with how many rows each would leave beside it
        for other in reversed(others):
            if other.manifest.dim != self.manifest.dim:
                continue
            if other.wanted == self.wanted:
                candidates.append((-1, other.main))
            elif other.is_slow_to_build:
                missing = rows_of(gaps(self.wanted, other.main.rows.pieces))
                gone = rows_of(gaps(other.main.rows.pieces, self.wanted))
                if pays(other.main.rows.num_rows, beside=missing, gone=gone):
                    candidates.append((missing, other.main))
        candidates.sort(key=lambda candidate: candidate[0])
        return next((main for _, main in candidates if main.rows.serves(self._unseen(main), self._dead)), None)

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
        """How many of the main parts, the first ones, an index covers that was saved before the others came, if so few
        came that a shard that has it would keep it; None if there is none."""
        saved = set(self._storage.list(INDEX_FOLDER))
        spec = parse_index(self._config.index, INDEXES)
        is_exact, device = INDEXES[spec.name].exact, spec.options.get("device", "cpu")
        for count in range(len(of_all), 0, -1):
            leading = [piece for piece in slices if piece.part < count]
            rows = sum(piece.rows for piece in leading)
            missing = sum(piece.rows for piece in slices) - rows
            is_slow = _is_slow_to_build(rows, is_exact=is_exact, device=device)
            if not saved or (missing and not (is_slow and pays(rows, beside=missing, gone=0))):
                break
            if index_path(self._config.index, _indexed(of_all[:count], leading)) in saved:
                return count
        return None

    def _runs(self, slices: Sequence[Slice], others: Sequence["Snapshot"]) -> list[HeldRows]:
        """Rows beside the main index, in runs, of which other generations have all but the last ones.

        Neighbours that nobody has are one run: they are read and indexed in any case.
        """
        pieces = pieces_of(self.manifest, slices)
        held_from: dict[Piece, list[HeldRows]] = {}
        for one in (one for other in others for one in other.runs):
            held_from.setdefault(one.rows.pieces[0], []).append(one)
        spans: list[tuple[int, int, HeldRows | None]] = []
        at = 0
        while at < len(pieces):
            fit = [
                one
                for one in held_from.get(pieces[at], ())
                if one.rows.pieces == pieces[at : at + len(one.rows.pieces)] and self._is_good(one)
            ]
            kept = max(fit, key=lambda one: len(one.rows.pieces), default=None)
            end = at + (1 if kept is None else len(kept.rows.pieces))
            if kept is None and spans and spans[-1][2] is None:
                start, _, _ = spans.pop()
                spans.append((start, end, None))
            else:
                spans.append((at, end, kept))
            at = end
        rows = [
            sum(piece.rows for piece in pieces[start:end]) if kept is None else kept.rows.num_rows
            for start, end, kept in spans
        ]
        found = []
        for first, last in runs(rows):
            kept = spans[first][2] if last == first + 1 else None
            found.append(kept or self._exactly(slices[spans[first][0] : spans[last - 1][1]]))
        return found

    def _is_good(self, run: HeldRows) -> bool:
        """Whether a run of another generation is right for this one, and most of it lives."""
        dead_M = run.rows.dead_here(self._dead)
        return len(dead_M) <= MOST_DEAD * run.rows.num_rows and run.rows.serves(dead_M, self._dead)

    def _exactly(self, slices: Sequence[Slice]) -> HeldRows:
        """Rows that are few: any other index would have to be built for them at every change."""
        threads = self._config.threads
        rows = Rows(self._storage, self.manifest, slices, self._dead, without_dead=True, threads=threads)
        return HeldRows(rows, index_exactly(rows.vectors, threads) if rows.vectors.chunks and rows.num_rows else None)

    def _unseen(self, held: HeldRows) -> NDArray[np.int64]:
        return held.unseen(self.wanted, self._dead)


def _is_slow_to_build(rows: int, *, is_exact: bool, device: str) -> bool:
    return not is_exact or (device == "cpu" and rows >= _SLOW_TO_BUILD)


def _indexed(parts: Sequence[Part], slices: Sequence[Slice]) -> IndexedRows:
    """The name of an index over slices of these vectors parts."""
    return IndexedRows(
        main=main_name(parts),
        slices=tuple((parts[piece.part].checksum, piece.start, piece.stop) for piece in slices),
    )


def _positions(pieces: Sequence[Piece], parts: Mapping[tuple[Part, Part | None], int]) -> list[int]:
    """Where the parts of these pieces stand in a manifest; -1 for one that it does not name."""
    return [parts.get((piece.facts, piece.vectors), -1) for piece in pieces]
