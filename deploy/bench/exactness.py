"""[ray] `hmn bench exactness`: the exact index against float64 brute force, every kind of vectors and every shape."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import click
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deploy.console import Console
from deploy.options import examples, json_option
from memory_store import Memory, MemoryWriter, open_memory
from memory_store.progress import Progress, silent
from memory_store.ray_session import ensure_ray
from memory_store.topk import PartialTopK, select

# N facts in the memory, D dimension, B queries, K slots, C candidates of a query, U distinct rows, X of them used

__all__ = ["KINDS", "Checked", "command", "run_exactness_bench"]

Vectors = NDArray[np.float32]
BLOCK_ROWS = 65_536
DIMS = (1, 3, 64, 128, 257)
BATCHES = (1, 5, 512)
SHARDS = (1, 2, 3, 4, 5, 6, 7)
SIZES = (1, 2, 17, 1_000, 100_000)
LARGEST = 1_000_000  # walked at D = 128 only, unless --full


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One memory that was searched: how many answers were held against brute force, and how many differed."""

    kind: str
    facts: int
    dim: int
    shards: int
    backend: str
    answers: int
    wrong: int


def _random(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return rng.standard_normal((n, dim), dtype=np.float32)


def _clustered(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    centres = rng.standard_normal((max(1, min(50, n)), dim), dtype=np.float32)
    return centres[rng.integers(len(centres), size=n)] + np.float32(1e-3) * _random(rng, n, dim)


def _duplicated(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    few = _random(rng, max(1, min(7, n)), dim)
    return few[rng.integers(len(few), size=n)]


def _zero(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return np.zeros((n, dim), dtype=np.float32)


def _tiny(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return _random(rng, n, dim) * np.float32(1e-39)  # below the smallest normal float32


def _huge(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return _random(rng, n, dim).clip(-3, 3) * np.float32(1e37)  # products overflow float32


def _heavy_tailed(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    norms_N1: Vectors = rng.pareto(1.0, (n, 1)).clip(max=1e6).astype(np.float32)
    return _random(rng, n, dim) * norms_N1


KINDS: dict[str, Callable[[np.random.Generator, int, int], Vectors]] = {
    "random": _random,
    "clustered": _clustered,
    "duplicated": _duplicated,
    "zero": _zero,
    "tiny": _tiny,
    "huge": _huge,
    "heavy-tailed": _heavy_tailed,
}


def run_exactness_bench(
    *,
    sizes: tuple[int, ...] = SIZES,
    dims: tuple[int, ...] = DIMS,
    kinds: tuple[str, ...] = tuple(KINDS),
    backends: tuple[Literal["local", "ray"], ...] = ("local", "ray"),
    seed: int = 0,
    progress: Progress = silent,
) -> list[Checked]:
    """Search memories of every kind, size and dimension with every batch and k, and compare with brute force.

    Each memory is opened with another number of shards, so that every number from 1 to 7 meets every kind. An answer is
    wrong when one of its K ids or scores (as float32) differs.
    """
    if "ray" in backends:
        ensure_ray(2)
    cases = list(itertools.product(kinds, sizes, dims))
    shard_numbers = itertools.cycle(SHARDS)
    checked: list[Checked] = []
    for number, (kind, facts, dim) in enumerate(cases):
        rng = np.random.default_rng([seed, number])
        with tempfile.TemporaryDirectory(prefix="hmn-exactness-") as folder:
            ids_N = rng.permutation(facts * 3)[:facts].astype(np.int64)
            vectors_ND = KINDS[kind](rng, facts, dim)
            _write(folder, ids_N, vectors_ND)
            searches = list(_searches(kind, ids_N, vectors_ND, rng))
            shards = next(shard_numbers)
            for backend in backends:
                with open_memory(folder, shards=shards, backend=backend) as memory:
                    answers, wrong = _check(memory, searches)
                line = Checked(
                    kind=kind, facts=facts, dim=dim, shards=shards, backend=backend, answers=answers, wrong=wrong
                )
                checked.append(line)
        progress("exactness", number + 1, len(cases), unit="memories", note=f"{kind} N={facts} D={dim}")
    return checked


def _write(folder: str, ids_N: NDArray[np.int64], vectors_ND: Vectors) -> None:
    with MemoryWriter(folder, dim=vectors_ND.shape[1]) as writer:
        for start in range(0, len(ids_N), BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            writer.append(pa.table({"fact_id": ids_N[start:stop]}), vectors_ND[start:stop])


def _searches(
    kind: str, ids_N: NDArray[np.int64], vectors_ND: Vectors, rng: np.random.Generator
) -> Iterator[tuple[Vectors, PartialTopK]]:
    """Batches of queries with the answers that brute force gives, as many as the largest k."""
    facts, dim = vectors_ND.shape
    for batch in BATCHES if facts < LARGEST else (1, 64):
        # random directions at the vectors' own scale, and some of the rows themselves
        queries_BD = KINDS["random" if kind == "zero" else kind](rng, batch, dim)
        queries_BD[::3] = vectors_ND[rng.integers(facts, size=len(queries_BD[::3]))]
        yield queries_BD, brute_force(ids_N, vectors_ND, queries_BD, max(_ks(facts)))


def _ks(facts: int) -> list[int]:
    return [k for k in (1, 10, 100, facts + 3) if k <= 1_003]


def _check(memory: Memory, searches: list[tuple[Vectors, PartialTopK]]) -> tuple[int, int]:
    """(answers, wrong answers) of the memory."""
    answers = wrong = 0
    for queries_BD, expected in searches:
        for k in _ks(len(memory)):
            found = memory.search(queries_BD, k)
            same_BK = found.fact_ids_BK == expected.fact_ids_BK[:, :k]
            with np.errstate(over="ignore"):
                same_BK &= found.scores_BK == expected.scores_BK[:, :k].astype(np.float32)
            answers += len(queries_BD)
            wrong += int((~same_BK.all(axis=1)).sum())
    return answers, wrong


def brute_force(ids_N: NDArray[np.int64], vectors_ND: Vectors, queries_BD: Vectors, k: int) -> PartialTopK:
    """The k best rows per query in float64, ties by smaller id; independent of every index.

    A matrix product finds the candidates; each is scored again with its terms summed in one fixed order, so that equal
    rows have equal scores whatever the product's blocking was. Rows of equal bytes are scored once.
    """
    queries64_BD = queries_BD.astype(np.float64)
    norms_B = np.linalg.norm(queries64_BD, axis=1)
    ids, scores = [], []
    row_U, distinct_N = _distinct(vectors_ND)
    scores_BN = np.concatenate([queries64_BD @ block.T for block in _blocks64(vectors_ND)], axis=1)
    largest_norm = max(float(np.linalg.norm(block, axis=1).max()) for block in _blocks64(vectors_ND))
    at = max(len(ids_N) - k, 0)
    slack_B = 4 * vectors_ND.shape[1] * 2.0**-52 * norms_B * largest_norm
    for query64_D, scores_N, slack in zip(queries64_BD, scores_BN, slack_B, strict=True):
        candidates_C = np.flatnonzero(scores_N >= np.partition(scores_N, at)[at] - slack)
        used_U = np.zeros(len(row_U), dtype=bool)
        used_U[distinct_N[candidates_C]] = True
        true_X = (vectors_ND[row_U[used_U]].astype(np.float64) * query64_D).sum(axis=1)
        true_C = true_X[np.cumsum(used_U)[distinct_N[candidates_C]] - 1]
        best = select(ids_N[candidates_C][None], true_C[None], k)
        ids.append(best.fact_ids_BK[0])
        scores.append(best.scores_BK[0])
    return PartialTopK(fact_ids_BK=np.stack(ids), scores_BK=np.stack(scores))


def _distinct(vectors_ND: Vectors) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(a row of each distinct one, which of those every row is)."""
    bytes_N = np.ascontiguousarray(vectors_ND).view(np.dtype((np.void, vectors_ND.shape[1] * 4)))[:, 0]
    _, row_U, distinct_N = np.unique(bytes_N, return_index=True, return_inverse=True)
    return row_U, distinct_N


def _blocks64(vectors_ND: Vectors) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(vectors_ND), BLOCK_ROWS):
        yield vectors_ND[start : start + BLOCK_ROWS].astype(np.float64)


@click.command(
    name="exactness",
    epilog=examples(
        "hmn bench exactness                  a few minutes", "hmn bench exactness --full           and N = 1M"
    ),
)
@click.option("--full", is_flag=True, help="Also one million facts of every kind, at 128 dimensions.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@click.pass_obj
def command(console: Console, full: bool, seed: int) -> int:
    """Hold the exact index against float64 brute force: 7 kinds of vectors, 1 to 7 shards, both backends.

    Exit status 1 when an answer is wrong.
    """
    began = time.monotonic()
    checked = run_exactness_bench(seed=seed, progress=console.progress)
    if full:
        checked += run_exactness_bench(sizes=(LARGEST,), dims=(128,), seed=seed, progress=console.progress)
    return _report(console, checked, time.monotonic() - began)


def _report(console: Console, checked: list[Checked], seconds: float) -> int:
    rows = [
        (kind, max(line.facts for line in own), sum(line.answers for line in own), sum(line.wrong for line in own))
        for kind in KINDS
        if (own := [line for line in checked if line.kind == kind])
    ]
    wrong = sum(line.wrong for line in checked)
    result: dict[str, Any] = {
        "answers": sum(line.answers for line in checked),
        "wrong": wrong,
        "seconds": seconds,
        "memories": [asdict(line) for line in checked],
    }

    def show() -> None:
        console.table(
            ("vectors", "largest N", "answers", "wrong"), rows, title="exact index against float64 brute force"
        )

    console.result(result, show)
    return 1 if wrong else 0
