"""The speed part of `hmn bench paper` where approximate search pays: the same model and steps over more facts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bench.paper_cases import CASES, REFERENCE, Source, settings_key
from deploy.bench.paper_runs import TEST_K, recall_of, reference_run, timed_ways
from memory_store.errors import MemoryNotFound
from memory_store.manifest import read_manifest
from memory_store.opening import open_memory
from memory_store.progress import Progress
from memory_store.storage import Storage
from pipeline.embed import embed
from pipeline.ingest import ingest
from pipeline.sources.questions import read_questions
from trainer.data import Questions
from trainer.refresh import FactEmbedder
from trainer.run import load_run

# B questions that are searched for, K facts retrieved per question

__all__ = ["LARGER", "WAYS", "larger_key", "larger_rows", "run_larger"]

LARGER = "larger"
WAYS = [case for case in CASES if case.name == REFERENCE or case.group == "search"]
"""What is timed: the exact search and the approximate ones. Of the full softmax `hmn bench step` knows more."""

_QUESTIONS = 1_024  # of the validation split, for the recall


def larger_key(source: Source, facts: Path, *, steps: int) -> str:
    """Names the model and the file of facts that a result depends on."""
    return f"{settings_key(CASES[0], source, steps=steps)}-{_file_key(facts)}"


def run_larger(
    source: Source, facts: Path, out: Path, *, steps: int, threads: int, repeats: int, progress: Progress
) -> dict[str, Any]:
    """Processor time of a step and of its search, and recall@10, by index, over the memory of another file of facts.

    The facts are ingested and embedded by the reference run, once, under out/larger. Its questions are asked where the
    memory holds their facts.
    """
    with reference_run(source, out, seed=0, steps=steps, threads=threads, progress=progress) as folder:
        url = str(out / LARGER / _file_key(facts))
        _embedded(url, facts, source, folder / "run", progress)
        ways, count = timed_ways(folder, url, WAYS, repeats, threads, progress)
        recalls = _recalls(url, folder / "run", source)
    return {
        "case": LARGER,
        "seed": 0,
        "settings": larger_key(source, facts, steps=steps),
        "data": source.name,
        "facts": count,
        "file": facts.name,
        "threads": threads,
        "repeats": repeats,
        "ways": {name: {**way, "recall": recalls[name]} for name, way in ways.items()},
    }


def _file_key(facts: Path) -> str:
    """Another file of the same name is mostly of another size."""
    return f"{facts.name}-{facts.stat().st_size}"


def _embedded(url: str, facts: Path, source: Source, run: Path, progress: Progress) -> None:
    try:
        read_manifest(Storage(url))
    except MemoryNotFound:
        ingest(str(facts), url, names=source.names, progress=progress)
    encoder = load_run(run)[2]
    embedder = FactEmbedder(encoder, remember=0)
    embed(url, lambda: embedder, fingerprint=encoder.fingerprint(), dim=encoder.dim, progress=progress)


def _recalls(url: str, run: Path, source: Source) -> Mapping[str, float]:
    """By way: the share of the exact K best facts of validation questions that its index finds."""
    questions = Questions.of(read_questions(source.questions, "valid"))
    query_BD = load_run(run)[2].ask(questions.texts[:_QUESTIONS]).numpy()
    exact_BK = _found("exact", url, query_BD)
    return {way.name: recall_of(_found(way.index, url, query_BD), exact_BK) for way in WAYS}


def _found(index: str, url: str, query_BD: NDArray[np.float32]) -> NDArray[np.int64]:
    with open_memory(url, index=index, recall_share=0) as memory:
        return memory.search(query_BD, TEST_K).fact_ids_BK


def larger_rows(lines: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The lines of the page's table, the smallest memory first. shown: by way, what people call it."""
    return [
        (
            f"{line['facts']:,}",
            "exact" if name == REFERENCE else shown[name],
            f"{way['step_cpu_ms']:.0f}",
            f"× {way['ratio']:.2f}",
            f"{way['search_cpu_ms']:.1f}",
            f"× {way['search_cpu_ms'] / line['ways'][REFERENCE]['search_cpu_ms']:.2f}",
            f"{way['recall']:.3f}",
        )
        for line in sorted(lines, key=lambda line: line["facts"])
        for name, way in line["ways"].items()
    ]
