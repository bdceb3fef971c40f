"""`pca_tree`: rows halved again and again along principal components; a search scans the most promising leaves."""

import numpy as np
from numpy.typing import NDArray

from memory_store.mips.approximate import SMALL_ROWS, ApproximateIndex, CandidateSource
from memory_store.mips.base import IndexSpec, SavedArrays, ShardVectors
from memory_store.mips.codes import CODES, choose_codes, code_width, planned_codes, spare_slots
from memory_store.mips.lists import InvertedLists
from memory_store.mips.live import LiveRows
from memory_store.mips.options import one_of, whole_number
from memory_store.mips.reduction import Reduction
from memory_store.mips.scaled import ScaledRows
from memory_store.mips.workers import Workers, builders

# N rows, n rows in a sample or block, D dimension, E reduced dimension, H levels of the tree (its height),
# b queries, W nodes kept per query, K slots

__all__ = ["PcaTreeSource", "build_pca_tree", "pca_tree_bytes", "restore_pca_tree"]

_LEAF_ROWS = 128
_MOST_LEVELS = 24
_SAMPLED_ROWS = 2**16  # enough for the covariance of thousands of columns
_LEAVES_SHARE = 64  # one leaf in so many is scanned by default,
_LEAST_LEAVES = 16  # but at least so many
_SEED = 0


class PcaTreeSource(CandidateSource):
    """A balanced binary tree (Bachrach et al. 2014): all nodes of a level split on one principal component, each at the
    median of its own rows.

    The paper scans the leaf of a query and those whose path differs in one turn. Here leaves are taken in the order of
    the squared margins by which the query missed them, summed over the turns, as many as asked for: the same leaves
    when few are asked for, and others beyond one turn when more are.
    """

    effort_name = "leaves"

    def __init__(
        self, components_EH: NDArray[np.float32], splits: NDArray[np.float32], lists: InvertedLists, leaves: int
    ) -> None:
        """splits: of all nodes, level by level: node w of level h is at 2^h - 1 + w."""
        self._components_EH = components_EH
        self._splits = splits
        self._lists = lists
        self.most_effort = len(splits) + 1
        self.default_effort = min(leaves, self.most_effort)

    @property
    def nbytes(self) -> int:
        return self._components_EH.nbytes + self._splits.nbytes + self._lists.nbytes

    def candidates(
        self, queries_bD: NDArray[np.float32], k: int, effort: int, live: LiveRows | None
    ) -> NDArray[np.int64]:
        return self._lists.scan(queries_bD, self.leaves(queries_bD, effort), spare_slots(k), live)

    def leaves(self, queries_bD: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` leaves of smallest summed squared margin per query, [b, count], in any order."""
        projected_bH = _query_units(queries_bD) @ self._components_EH
        node_bW = np.zeros((len(queries_bD), 1), dtype=np.int64)
        cost_bW = np.zeros((len(queries_bD), 1), dtype=np.float32)
        for level in range(projected_bH.shape[1]):
            margin_bW = projected_bH[:, level, None] - self._splits[2**level - 1 + node_bW]
            missed_bW = np.square(margin_bW)
            right_bW = margin_bW >= 0
            # A parent's children: the side of the query costs nothing more, the other its squared margin.
            node_bW = np.concatenate([2 * node_bW, 2 * node_bW + 1], axis=1)
            cost_bW = np.concatenate(
                [cost_bW + np.where(right_bW, missed_bW, 0), cost_bW + np.where(right_bW, 0, missed_bW)], axis=1
            )
            if node_bW.shape[1] > count:  # costs only grow: a node among the worst has no leaf among the best
                kept_bW = np.argpartition(cost_bW, count - 1, axis=1)[:, :count]
                node_bW = np.take_along_axis(node_bW, kept_bW, axis=1)
                cost_bW = np.take_along_axis(cost_bW, kept_bW, axis=1)
        return node_bW

    def arrays(self) -> SavedArrays:
        return {"components": self._components_EH, "splits": self._splits, "lists": self._lists.to_bytes()}


def build_pca_tree(vectors: ShardVectors, spec: IndexSpec, threads: int) -> ApproximateIndex:
    """Find the principal components of the reduced rows, and halve the rows level by level."""
    workers = Workers(threads)
    levels, leaves = _levels_and_leaves(spec, vectors.num_rows)
    codes = one_of(spec, "codes", CODES)
    if vectors.num_rows <= SMALL_ROWS:
        return ApproximateIndex(vectors, None, workers)
    building = builders(threads)
    rows = ScaledRows(vectors)
    reduction = Reduction.of("cosine", rows)
    components_EH = _components(reduction, rows, levels)
    projected_NH = np.empty((rows.num_rows, levels), dtype=np.float32)
    for part, block_nE in reduction.blocks(rows):
        projected_NH[part] = block_nE @ components_EH
    leaf_N, splits = _halve(projected_NH)
    lists = InvertedLists.build(rows, leaf_N, 2**levels, choose_codes(codes, rows), building)
    return ApproximateIndex(vectors, PcaTreeSource(components_EH, splits, lists, leaves), workers)


def restore_pca_tree(vectors: ShardVectors, spec: IndexSpec, threads: int, arrays: SavedArrays) -> ApproximateIndex:
    """The index that PcaTreeSource.arrays describes."""
    _, leaves = _levels_and_leaves(spec, vectors.num_rows)
    lists = InvertedLists.from_bytes(arrays["lists"])
    source = PcaTreeSource(np.array(arrays["components"]), np.array(arrays["splits"]), lists, leaves)
    return ApproximateIndex(vectors, source, Workers(threads))


def pca_tree_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What an index over so many rows will hold, at most."""
    levels, _ = _levels_and_leaves(spec, rows)
    codes = planned_codes(one_of(spec, "codes", CODES))
    lists = InvertedLists.planned_bytes(rows, code_width(dim), 2**levels, codes)
    return (dim + 1) * levels * 4 + int(2**levels) * 4 + lists


def _levels_and_leaves(spec: IndexSpec, rows: int) -> tuple[int, int]:
    most = min(max(rows, 2).bit_length() - 1, _MOST_LEVELS)  # a leaf holds at least one row
    default = min(max(-(-rows // _LEAF_ROWS) - 1, 1).bit_length(), most)
    levels = min(whole_number(spec, "levels", default, most=_MOST_LEVELS), most)
    return levels, min(whole_number(spec, "leaves", max(2**levels // _LEAVES_SHARE, _LEAST_LEAVES)), 2**levels)


def _components(reduction: Reduction, rows: ScaledRows, levels: int) -> NDArray[np.float32]:
    """The first principal components [E, H], largest variance first; again from the first where E < H."""
    sample_nE = reduction.rows(rows.take(rows.sample(_SAMPLED_ROWS, np.random.default_rng(_SEED)))).astype(np.float64)
    sample_nE -= sample_nE.mean(axis=0)
    _, vectors_EE = np.linalg.eigh(sample_nE.T @ sample_nE)
    largest_first_EE = vectors_EE[:, ::-1]
    return np.ascontiguousarray(largest_first_EE[:, np.arange(levels) % vectors_EE.shape[1]], dtype=np.float32)


def _halve(projected_NH: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(leaf of each row [N], split of each node, level by level); the halves of a node differ by at most one row."""
    num_rows, levels = projected_NH.shape
    order_N = np.arange(num_rows)
    edges = np.array([0, num_rows])
    splits = np.empty(2**levels - 1, dtype=np.float32)
    for level in range(levels):
        node_N = np.repeat(np.arange(2**level), np.diff(edges))
        order_N = order_N[np.lexsort((projected_NH[order_N, level], node_N))]
        middles = (edges[:-1] + edges[1:]) // 2
        # The split lies between the two rows at the middle; a query exactly there goes right.
        at_middle, before = projected_NH[order_N, level][middles], projected_NH[order_N, level][middles - 1]
        splits[2**level - 1 : 2 ** (level + 1) - 1] = (at_middle + before) / 2
        edges = np.sort(np.concatenate([edges, middles]))
    leaf_N = np.empty(num_rows, dtype=np.int64)
    leaf_N[order_N] = np.repeat(np.arange(2**levels), np.diff(edges))
    return leaf_N, splits


def _query_units(queries_bD: NDArray[np.float32]) -> NDArray[np.float32]:
    return Reduction(name="cosine", bound=1.0).queries(queries_bD)
