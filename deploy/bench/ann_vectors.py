"""The vectors of `hmn bench ann`: three kinds drawn at random, and the facts and questions of a trained run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import InputError
from memory_store.manifest import read_manifest
from memory_store.parts import scan_vectors, vectors_of
from memory_store.storage import Storage

# N rows, D dimension, B queries

__all__ = ["KINDS", "TRAINED", "TrainedSource", "VectorSet", "draw"]

Vectors = NDArray[np.float32]

TRAINED = "trained"
KINDS: Final = ("clustered", "sphere", TRAINED, "heavy tails")
"""What is measured on; the three that are not trained are drawn at random."""

_CENTRES = 1000
_SPREAD = 0.4  # of a row about its centre, whose values have a standard deviation of 1
_QUESTIONS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class VectorSet:
    """vectors_ND and queries_BD, float32. note: what they are, for the table."""

    vectors_ND: Vectors
    queries_BD: Vectors
    note: str


@dataclass(frozen=True, kw_only=True)
class TrainedSource:
    """A memory that was embedded by a trained run, and the run, whose validation questions are asked."""

    memory: str
    run: Path


def draw(kind: str, rows: int, dim: int, queries: int, seed: int, trained: TrainedSource | None) -> VectorSet:
    """The vectors of one kind. Raises InputError where a trained memory is needed and not given, or is too small."""
    rng = np.random.default_rng(seed)
    if kind == TRAINED:
        if trained is None:
            raise InputError("expected --memory URL and --run DIR for trained vectors, found none")
        return _trained(trained, rows, queries, rng)
    both, note = _DRAWN[kind](rng, rows + queries, dim)
    # Queries come from the same draw, except that the length of a query orders nothing.
    return VectorSet(both[:rows], both[rows:], note)


def _clustered(rng: np.random.Generator, count: int, dim: int) -> tuple[Vectors, str]:
    centres = rng.standard_normal((_CENTRES, dim), dtype=np.float32)
    both = rng.standard_normal((count, dim), dtype=np.float32)
    both *= np.float32(_SPREAD)
    both += centres[rng.integers(_CENTRES, size=count)]
    return both, f"normal rows about {_CENTRES:,} normal centres, spread {_SPREAD}"


def _sphere(rng: np.random.Generator, count: int, dim: int) -> tuple[Vectors, str]:
    both = rng.standard_normal((count, dim), dtype=np.float32)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    return both, "uniform on the sphere"


def _heavy_tails(rng: np.random.Generator, count: int, dim: int) -> tuple[Vectors, str]:
    both, _ = _sphere(rng, count, dim)
    both *= np.exp(rng.standard_normal((count, 1), dtype=np.float32))
    return both, "uniform directions, lognormal norms"


_DRAWN: Final[dict[str, Callable[[np.random.Generator, int, int], tuple[Vectors, str]]]] = {
    "clustered": _clustered,
    "sphere": _sphere,
    "heavy tails": _heavy_tails,
}


def _trained(source: TrainedSource, rows: int, queries: int, rng: np.random.Generator) -> VectorSet:
    from pipeline.sources.questions import read_questions
    from trainer.run import load_run

    config, _, encoder = load_run(source.run)
    storage = Storage(source.memory)
    manifest = read_manifest(storage)
    encoder.check_fingerprint(manifest.encoder)
    texts = read_questions(config.data.questions, "valid")["question"].to_pylist()
    asked = [texts[number] for number in np.sort(rng.permutation(len(texts))[:queries]).tolist()]
    parts = [
        encoder.ask(asked[start : start + _QUESTIONS_AT_ONCE]).numpy()
        for start in range(0, len(asked), _QUESTIONS_AT_ONCE)
    ]
    queries_BD: Vectors = np.concatenate(parts)
    vectors_ND = _first_rows(storage, source.memory, rows, queries_BD.shape[1])
    note = f"facts and validation questions of {config.model.encoder}, {config.model.members} members"
    return VectorSet(vectors_ND, rng.permutation(queries_BD, axis=0), note)


def _first_rows(storage: Storage, url: str, rows: int, dim: int) -> Vectors:
    """The first rows of the memory, part by part, so that no more than they are held."""
    manifest = read_manifest(storage)
    if manifest.fact_count < rows:
        raise InputError(f"expected at least {rows:,} facts in {url}, found {manifest.fact_count:,}")
    vectors_ND = np.empty((rows, dim), dtype=np.float32)
    at = 0
    for table in scan_vectors(storage, manifest):
        piece = vectors_of(table)[: rows - at]
        vectors_ND[at : at + len(piece)] = piece
        at += len(piece)
        if at == rows:
            break
    return vectors_ND
