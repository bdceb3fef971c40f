"""What `hmn bench serve` serves and asks: the memory of a run and questions about it, or synthetic vectors."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deploy.bench.serve_load import Request, questions, vectors
from deploy.serve.settings import Source
from memory_store.errors import ConfigError, EmptyInput
from memory_store.manifest import read_manifest
from memory_store.parts import fact_ids_of, open_part
from memory_store.progress import Progress, silent
from memory_store.reembed import reembed
from memory_store.storage import Storage
from memory_store.writer import MemoryWriter
from trainer.refresh import FactEmbedder
from trainer.run import load_run

# N facts, D dimension, B queries

__all__ = ["World", "questions_about", "reindex", "synthetic_world", "vectors_of_ids", "world_of_run"]

QUESTIONS = 2_000
VECTORS = 500
BLOCK = 1_024  # a synthetic vector is a sum of one of so many and another of so many
NOISE = 0.05
ROWS_AT_ONCE = 131_072


@dataclass(frozen=True, kw_only=True)
class World:
    """memory: what is served. requests: what is asked. synthetic: whether its vectors are `vectors_of_ids`."""

    memory: str
    requests: list[Request]
    synthetic: bool


def world_of_run(source: Source, k: int, folder: Path | None = None) -> World:
    """The memory of a located run. folder: copy the memory there first, so that it may be re-indexed.

    Raises EmptyInput where there is nothing to ask about, ConfigError for a copy of a memory that is not a directory.
    """
    requests = questions(questions_about(source), k)
    memory = str(source.memory)
    if folder is not None:
        if not Path(memory).is_dir():
            raise ConfigError(f"expected a memory in a directory for --disturb, found {Storage(memory).shown}")
        memory = str(shutil.copytree(memory, folder / "memory"))
    return World(memory=memory, requests=requests, synthetic=False)


def synthetic_world(run_dir: str, facts: int, k: int, folder: Path, progress: Progress = silent) -> World:
    """A memory of so many synthetic unit vectors, under the name of the run's model, which therefore serves it."""
    _, _, encoder = load_run(run_dir)
    url = str(folder / "memory")
    with MemoryWriter(url, dim=1) as writer:  # the vectors follow: only an embedding bears the name of a model
        for start in range(0, facts, ROWS_AT_ONCE):
            ids_N = np.arange(start, min(start + ROWS_AT_ONCE, facts))
            writer.append(pa.table({"fact_id": ids_N}), np.zeros((len(ids_N), 1), np.float32))
    reembed(
        Storage(url),
        lambda table: vectors_of_ids(fact_ids_of(table), encoder.dim),
        fingerprint=encoder.fingerprint(),
        progress=progress,
    )
    rng = np.random.default_rng(1)
    ids_B = rng.choice(facts, min(VECTORS, facts), replace=False)
    queries_BD = vectors_of_ids(ids_B, encoder.dim)
    queries_BD += (NOISE / encoder.dim**0.5) * rng.standard_normal(queries_BD.shape, dtype=np.float32)
    rows = [[round(value, 5) for value in row] for row in queries_BD.tolist()]
    return World(memory=url, requests=vectors(rows, [str(one) for one in ids_B.tolist()], k), synthetic=True)


def vectors_of_ids(fact_ids_N: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """Unit vectors [N, D], each id its own (up to BLOCK^2), the same in every process: nearest to itself of all."""
    first_D, second_D = (np.random.default_rng(seed).standard_normal((BLOCK, dim), dtype=np.float32) for seed in (2, 3))
    found_ND = first_D[fact_ids_N % BLOCK] + second_D[fact_ids_N // BLOCK % BLOCK]
    found_ND /= np.linalg.norm(found_ND, axis=1, keepdims=True)
    return found_ND


def reindex(memory: str, run_dir: str, synthetic: bool) -> None:
    """Embed all facts anew by the model that serves them, and commit that: what serves loads and indexes all of it.

    By way of another name, because a memory that a model embedded already is left as it is.
    """
    _, _, encoder = load_run(run_dir)

    def encode(table: pa.Table) -> NDArray[np.float32]:
        return vectors_of_ids(fact_ids_of(table), encoder.dim) if synthetic else FactEmbedder(encoder)(table)

    for fingerprint in (f"{encoder.fingerprint()}-again", encoder.fingerprint()):
        reembed(Storage(memory), encode, fingerprint=fingerprint)


def questions_about(source: Source, seed: int = 0) -> list[str]:
    """Questions made of names and relations in the memory of a run. Raises EmptyInput where it has none."""
    storage = Storage(str(source.memory))
    manifest = read_manifest(storage, source.generation)
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for number in rng.permutation(len(manifest.facts)):
        table = open_part(storage, manifest.facts[int(number)]).select(["subject", "relation"])
        rows = rng.permutation(len(table))[: QUESTIONS - len(texts)]
        texts.extend(
            f"what is the {_spaced(row['relation'])} of {row['subject']}"[:500]
            for row in table.take(rows).to_pylist()
            if row["subject"] and row["relation"]
        )
        if len(texts) >= QUESTIONS:
            break
    if not texts:
        raise EmptyInput(f"expected facts with a subject and a relation in {storage.shown}, found none to ask about")
    return texts


def _spaced(relation: str) -> str:
    return relation.replace("/", " ").replace("_", " ")


if __name__ == "__main__":  # a process of its own: the load must not share its interpreter with it
    _order: Callable[..., None] = reindex
    _order(**json.loads(sys.argv[1]))
