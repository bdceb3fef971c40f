"""`wta_hash`: rows whose values rank alike share buckets; those that share most buckets with a query are scored."""

import numpy as np
from numpy.typing import NDArray

from memory_store.mips.approximate import NO_ROW, SMALL_ROWS, ApproximateIndex, CandidateSource
from memory_store.mips.base import IndexSpec, SavedArrays, ShardVectors
from memory_store.mips.live import LiveRows
from memory_store.mips.options import one_of, whole_number
from memory_store.mips.reduction import REDUCTIONS, Reduction
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.workers import Workers, builders

# N rows, n rows in a block, D dimension, E reduced dimension, T tables, M hashes per table, V values per hash (window),
# J buckets per table, b queries, C candidates, P pairs of a query and a row

__all__ = ["WtaHashSource", "build_wta_hash", "restore_wta_hash", "wta_hash_bytes"]

_TABLES = 64
_MOST_TABLES = 1024
_WINDOW = 4  # Yagnik et al. find small windows best; the code of a window takes two bits
_BUCKET_ROWS = 16  # rows that share a bucket where all buckets are alike
_MOST_BUCKET_ROWS = 256  # looked at in one bucket: the longest, for rows that rank alike may be many
_SCORED = 256  # rows scored per query: those that share most buckets with it
_HASHED_VALUES = 2**21  # values looked at in one step while hashing
_SEED = 0


class WtaHashSource(CandidateSource):
    """Winner-take-all hashing (Yagnik et al. 2011): a hash is the place of the largest of a few values drawn at random.

    M hashes make the key of a bucket, T tables vote, and the rows with most votes are candidates (as Vijayanarasimhan
    et al. 2015 vote). Vectors are rotated at random before, so that no value counts more than others.
    """

    effort_name = "tables"

    def __init__(
        self,
        rotation_EE: NDArray[np.float32],
        places_TMV: NDArray[np.int64],
        starts_TJ: NDArray[np.int32],
        rows_TN: NDArray[np.int32],
        tables: int,
        scored: int,
    ) -> None:
        """rows_TN: rows of each table by bucket, longest first; starts_TJ: where each bucket begins, and the end."""
        self._rotation_EE = rotation_EE
        self._places_TMV = places_TMV
        self._starts_TJ = starts_TJ
        self._rows_TN = rows_TN
        self._scored = scored
        self.most_effort = len(rows_TN)
        self.default_effort = min(tables, self.most_effort)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays().values())

    def candidates(
        self, queries_bD: NDArray[np.float32], k: int, effort: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        batch, num_rows = len(queries_bD), self._rows_TN.shape[1]
        name = "cosine" if len(self._rotation_EE) > queries_bD.shape[1] else "plain"
        turned_bE = Reduction(name=name, bound=1.0).queries(queries_bD) @ self._rotation_EE
        pairs: list[NDArray[np.int64]] = []
        for table in range(effort):
            bucket_b = bucket_numbers(turned_bE, self._places_TMV[table])
            first_b = self._starts_TJ[table, bucket_b].astype(np.int64)
            count_b = np.minimum(self._starts_TJ[table, bucket_b + 1] - first_b, _MOST_BUCKET_ROWS)
            query_P = np.repeat(np.arange(batch), count_b)
            place_P = np.arange(len(query_P)) - np.repeat(np.cumsum(count_b) - count_b, count_b)
            pairs.append(query_P * num_rows + self._rows_TN[table, first_b[query_P] + place_P])
        pair_P = np.concatenate(pairs)
        if live is not None:
            pair_P = pair_P[live.mask_N[pair_P % num_rows]]
        return _most_voted(pair_P, batch, num_rows, max(self._scored, 2 * k))

    def arrays(self) -> SavedArrays:
        return {
            "rotation": self._rotation_EE,
            "places": self._places_TMV,
            "starts": self._starts_TJ,
            "rows": self._rows_TN,
        }


def bucket_numbers(vectors_nE: NDArray[np.float32], places_MV: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each vector in one table: the winners of its M windows as digits of a number to the base V."""
    hashes, window = places_MV.shape
    winner_nM = vectors_nE[:, places_MV.ravel()].reshape(len(vectors_nE), hashes, window).argmax(axis=2)
    bucket_n: NDArray[np.int64] = winner_nM @ window ** np.arange(hashes, dtype=np.int64)
    return bucket_n


def build_wta_hash(vectors: ShardVectors, spec: IndexSpec, threads: int) -> ApproximateIndex:
    """Hash every row into every table."""
    workers = Workers(threads)
    tables, window, hashes, scored = _settings(spec, vectors.num_rows)
    reduction_name = one_of(spec, "reduction", REDUCTIONS)
    if vectors.num_rows <= SMALL_ROWS:
        return ApproximateIndex(vectors, None, workers)
    building = builders(threads)
    rows = ScaledRows(vectors)
    reduction = Reduction.of(reduction_name, rows)
    rng = np.random.default_rng(_SEED)
    dim = reduction.dim(rows.dim)
    rotation_EE = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    places_TMV = rng.random((tables, hashes, dim)).argsort(axis=2)[:, :, : min(window, dim)]
    buckets = places_TMV.shape[2] ** hashes
    bucket_TN = np.empty((tables, rows.num_rows), dtype=np.int32)
    for part, block_nE in reduction.blocks(rows):
        _hash_block(block_nE @ rotation_EE, places_TMV, bucket_TN[:, part], building)
    rows_TN = np.empty((tables, rows.num_rows), dtype=np.int32)
    starts_TJ = np.empty((tables, buckets + 1), dtype=np.int32)
    for table in range(tables):
        rows_TN[table] = np.lexsort((-rows.norms_N, bucket_TN[table]))
        starts_TJ[table] = np.searchsorted(bucket_TN[table, rows_TN[table]], np.arange(buckets + 1))
    source = WtaHashSource(rotation_EE, places_TMV, starts_TJ, rows_TN, tables, scored)
    return ApproximateIndex(vectors, source, workers)


def restore_wta_hash(vectors: ShardVectors, spec: IndexSpec, threads: int, arrays: SavedArrays) -> ApproximateIndex:
    """The index that WtaHashSource.arrays describes."""
    tables, _, _, scored = _settings(spec, vectors.num_rows)
    copies = {name: np.array(array) for name, array in arrays.items()}
    source = WtaHashSource(copies["rotation"], copies["places"], copies["starts"], copies["rows"], tables, scored)
    return ApproximateIndex(vectors, source, Workers(threads))


def wta_hash_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What an index over so many rows will hold, at most."""
    tables, window, hashes, _ = _settings(spec, rows)
    per_table = 4 * rows + 4 * (int(window**hashes) + 1) + 8 * hashes * window
    return 4 * (dim + 1) * (dim + 1) + tables * per_table


def _settings(spec: IndexSpec, rows: int) -> tuple[int, int, int, int]:
    """(tables, values per hash, hashes per table, rows scored per query)."""
    window = whole_number(spec, "window", _WINDOW, least=2, most=16)
    bits = max(rows // _BUCKET_ROWS, window).bit_length() - 1
    hashes = whole_number(spec, "hashes", max(bits // (window.bit_length() - 1), 1), most=24)
    if window**hashes > 2**24:
        hashes = int(24 / np.log2(window))
    tables = whole_number(spec, "tables", _TABLES, most=_MOST_TABLES)
    return tables, window, hashes, whole_number(spec, "scored", _SCORED)


def _hash_block(
    turned_nE: NDArray[np.float32], places_TMV: NDArray[np.int64], bucket_Tn: NDArray[np.int32], workers: Workers
) -> None:
    at_once = max(_HASHED_VALUES // places_TMV[0].size, 1)
    tables = iter(range(len(places_TMV)))

    def work(_worker: int) -> None:
        for table in tables:
            for start in range(0, len(turned_nE), at_once):
                part = slice(start, start + at_once)
                bucket_Tn[table, part] = bucket_numbers(turned_nE[part], places_TMV[table])

    workers.run(work)


def _most_voted(pair_P: NDArray[np.int64], batch: int, num_rows: int, most: int) -> NDArray[np.int64]:
    """The rows of each query that its pairs (query * N + row) name most often, [b, most], padded with NO_ROW."""
    pair_P, votes_P = np.unique(pair_P, return_counts=True)
    query_P = pair_P // num_rows
    order_P = np.lexsort((-votes_P, query_P))
    query_P, row_P = query_P[order_P], pair_P[order_P] % num_rows
    count_b = np.bincount(query_P, minlength=batch)
    slot_P = np.arange(len(query_P)) - np.repeat(np.cumsum(count_b) - count_b, count_b)
    kept_P = slot_P < most
    rows_bC = np.full((batch, min(most, int(count_b.max(initial=0)))), NO_ROW, dtype=np.int64)
    rows_bC[query_P[kept_P], slot_P[kept_P]] = row_P[kept_P]
    return rows_bC
