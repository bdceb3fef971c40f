"""What `hmn bench paper` does for a case: train, test with several indexes, one line of results; and step times."""

import base64
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bench.paper_cases import CASES, REFERENCE, Case, Source, run_config, settings_key
from memory_store.errors import MemoryNotFound
from memory_store.manifest import read_manifest
from memory_store.memory import Memory
from memory_store.opening import open_memory
from memory_store.progress import Progress
from memory_store.storage import Storage
from pipeline.ingest import ingest
from pipeline.sources.questions import read_questions
from trainer.attention import KMipsAttention
from trainer.config import RunConfig
from trainer.data import Paths, Questions, TrainingData
from trainer.loop import train
from trainer.metrics import among, gold_ranks, read_metrics
from trainer.process import prepare_process, step_workers
from trainer.run import load_run
from trainer.sources import EncodedFacts, ExtraFacts
from trainer.step import Optimizers, training_step

# Q questions of the test split, B of a batch, K facts retrieved per question

__all__ = [
    "TIMING",
    "Results",
    "packed",
    "recall_of",
    "reference_run",
    "run_case",
    "run_timing",
    "timed_ways",
    "unpacked",
]

TEST_K = 10
TIMING = "timing"
_QUESTIONS_AT_ONCE = 512
_REFERENCE = next(case for case in CASES if case.name == REFERENCE)

Line = dict[str, Any]


class Results:
    """results.jsonl of a folder: one line for each case and seed that is finished; written whole, so never torn."""

    def __init__(self, folder: Path) -> None:
        self._storage = Storage(str(folder))
        self._path = folder / "results.jsonl"

    def lines(self) -> list[Line]:
        if not self._path.exists():
            return []
        return [json.loads(text) for text in self._path.read_text(encoding="utf-8").splitlines()]

    def find(self, case: str, seed: int, settings: str) -> Line | None:
        """The line of a case, or None if it has not been finished with these settings."""
        wanted = (case, seed, settings)
        found = (line for line in self.lines() if (line["case"], line["seed"], line["settings"]) == wanted)
        return next(found, None)

    def add(self, line: Line) -> None:
        content = "".join(json.dumps(one) + "\n" for one in [*self.lines(), line])
        self._storage.write_atomic(self._path.name, content.encode())


def run_case(case: Case, source: Source, out: Path, *, seed: int, steps: int, threads: int, progress: Progress) -> Line:
    """Train and test. The run of the reference case stays under out/runs, for the timing; others are deleted."""
    folder = out / "runs" / f"{case.name}-{seed}"
    with _trained(case, source, folder, out, seed=seed, steps=steps, threads=threads, progress=progress) as spent:
        metrics = read_metrics(folder / "run")
        line: Line = {
            "case": case.name,
            "seed": seed,
            "settings": settings_key(case, source, steps=steps),
            "data": source.name,
            "steps": steps,
            "softmax_size": statistics.fmean(one["softmax_size"] for one in metrics if one["kind"] == "train"),
            "curve": [(one["step"], one["accuracy"]) for one in metrics if one["kind"] == "refresh"],
            "sampled": next(one["questions"] for one in metrics if one["kind"] == "refresh"),
            **spent,
            **_tested(folder, case.tests, source),
        }
    if case.name != REFERENCE:
        shutil.rmtree(folder)
    return line


@contextmanager
def _trained(
    case: Case, source: Source, folder: Path, out: Path, *, seed: int, steps: int, threads: int, progress: Progress
) -> Iterator[dict[str, float]]:
    """A trained run in a folder, over a copy of the ingested memory; what training took."""
    ingested = out / "memory"
    _ingest(source, str(ingested), progress)
    if folder.exists():
        shutil.rmtree(folder)  # an attempt that was interrupted
    folder.mkdir(parents=True)
    shutil.copytree(ingested, folder / "memory")
    config = run_config(case, source, folder, seed=seed, steps=steps, threads=threads)
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    train(config, progress=progress)
    yield {"train_s": time.monotonic() - began_s, "train_cpu_s": time.process_time() - began_cpu_s}


def _ingest(source: Source, url: str, progress: Progress) -> None:
    try:
        read_manifest(Storage(url))
    except MemoryNotFound:
        ingest(source.facts, url, names=source.names, progress=progress)


def _tested(folder: Path, indexes: Sequence[str], source: Source) -> Line:
    """Right answers of the test questions by index; and the share of the exact K best facts that each index finds."""
    config, checkpoint, encoder = load_run(folder / "run")
    storage = Storage(config.memory.url)
    questions = Questions.of(read_questions(source.questions, "valid"))
    gold_QG = Paths.scan(storage, read_manifest(storage)).gold(questions.key_Q)
    texts = questions.texts
    starts = range(0, len(texts), _QUESTIONS_AT_ONCE)
    query_QD = np.concatenate([encoder.ask(texts[at : at + _QUESTIONS_AT_ONCE]).numpy() for at in starts])
    tests, facts, exact_QK = {}, 0, None
    for index in ("exact", *(index for index in indexes if index != "exact")):
        with open_memory(config.memory.url, index=index, generation=checkpoint.generation, recall_share=0) as memory:
            found = [memory.search(query_QD[at : at + _QUESTIONS_AT_ONCE], TEST_K).fact_ids_BK for at in starts]
            facts = len(memory)
        ids_QK = np.concatenate(found)
        exact_QK = ids_QK if exact_QK is None else exact_QK
        right_Q = gold_ranks(ids_QK, gold_QG) == 1
        tests[index] = {
            "accuracy": float(right_Q.mean()),
            "recall_of_exact": recall_of(ids_QK, exact_QK),
            "right": packed(right_Q),
        }
    return {"facts": facts, "questions": len(questions), "tests": tests}


def recall_of(found_QK: NDArray[np.int64], exact_QK: NDArray[np.int64]) -> float:
    """The share of the exact K best facts that were found."""
    return float(among(found_QK, exact_QK).sum() / (exact_QK >= 0).sum())


def packed(right_Q: NDArray[np.bool_]) -> str:
    """Which questions were answered rightly, as text: two runs are then compared question by question."""
    return base64.b64encode(np.packbits(right_Q).tobytes()).decode()


def unpacked(text: str, questions: int) -> NDArray[np.bool_]:
    """What `packed` packed."""
    bits = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(bits, count=questions).astype(np.bool_)


# Step times


def run_timing(
    source: Source, out: Path, *, seed: int, steps: int, threads: int, repeats: int, progress: Progress
) -> Line:
    """Processor time of a training step, every way in turn, on the reference model as it was when trained.

    The ways take turns within one process, so that whatever else the machine does falls on all of them; ratio is the
    median over the turns of a way's time against that of the reference. Learning goes on at a rate of next to nothing.
    """
    with reference_run(source, out, seed=seed, steps=steps, threads=threads, progress=progress) as folder:
        ways = [case for case in CASES if not case.model]
        times, facts = timed_ways(folder, str(folder / "memory"), ways, repeats, threads, progress)
    return {
        "case": TIMING,
        "seed": seed,
        "settings": settings_key(_REFERENCE, source, steps=steps),
        "data": source.name,
        "facts": facts,
        "threads": threads,
        "repeats": repeats,
        "ways": times,
    }


@contextmanager
def reference_run(
    source: Source, out: Path, *, seed: int, steps: int, threads: int, progress: Progress
) -> Iterator[Path]:
    """The folder with the run and the memory of the reference case; trained for this where `run_case` left none."""
    folder = out / "runs" / f"{REFERENCE}-{seed}"
    if (folder / "run").exists():
        yield folder
        return
    with _trained(_REFERENCE, source, folder, out, seed=seed, steps=steps, threads=threads, progress=progress):
        yield folder


def timed_ways(
    folder: Path, url: str, ways: Sequence[Case], repeats: int, threads: int, progress: Progress
) -> tuple[dict[str, dict[str, float]], int]:
    """(processor time by way; how many facts): steps of the run in this folder over the memory at url."""
    with ExitStack() as stack:
        memories = {
            index: stack.enter_context(open_memory(url, index=index, recall_share=0))
            for index in dict.fromkeys(case.index for case in ways)
        }
        times = _timed(folder, ways, memories, repeats, threads, progress)
        facts = len(next(iter(memories.values())))
    return {name: _summary(one, times[REFERENCE]) for name, one in times.items()}, facts


def _timed(
    folder: Path, ways: Sequence[Case], memories: Mapping[str, Memory], repeats: int, threads: int, progress: Progress
) -> dict[str, dict[str, list[float]]]:
    """Seconds of processor time by way: of the step, and of a search alone (0 where a step makes none)."""
    prepare_process(threads)
    workers = step_workers(threads)
    config, _, encoder = load_run(folder / "run")
    data = _training_data(config, next(iter(memories.values())).url)
    optimizers = Optimizers(encoder.train(), replace(config.train, table_damping=0.0))
    sources = {index: EncodedFacts(memory, encoder) for index, memory in memories.items()}
    times: dict[str, dict[str, list[float]]] = {way.name: {"step": [], "search": []} for way in ways}
    for turn in range(repeats + 1):
        batch = data.batch(turn)
        query_BD = encoder.ask(batch.texts).numpy()
        for way in ways:
            settings = run_config(way, _NOWHERE, folder, seed=0, steps=1, threads=threads).train
            memory = memories[way.index]
            attention = KMipsAttention(settings.k, settings.candidates).train()
            extra = ExtraFacts(memory, settings.extra, settings.extra_facts, seed=0)
            extra.draw((turn,))  # clusters are made once in many steps
            step = partial(
                training_step, encoder, attention, sources[way.index], batch, optimizers, workers=workers, decay=1e-9
            )
            began_s = time.process_time()
            step(drawn=extra.draw((turn,)), corrected=settings.correction == "importance")
            stepped_s = time.process_time()
            if settings.candidates != "full":
                memory.search(query_BD, settings.k)
            times[way.name]["step"].append(stepped_s - began_s)
            times[way.name]["search"].append(time.process_time() - stepped_s)
        progress(TIMING, turn, repeats, unit="turns")
    return {name: {what: values[1:] for what, values in one.items()} for name, one in times.items()}  # first: warm-up


_NOWHERE = Source(name="", questions="-", facts=())


def _training_data(config: RunConfig, url: str) -> TrainingData:
    storage = Storage(url)
    manifest = read_manifest(storage)
    return TrainingData(
        Questions.of(read_questions(config.data.questions, "train")),
        Paths.scan(storage, manifest),
        storage,
        manifest,
        batch_questions=config.train.batch_questions,
        swap=config.train.swap_subjects,
        seed=config.seed,
    )


def _summary(one: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]) -> dict[str, float]:
    ratios = [mine / theirs for mine, theirs in zip(one["step"], reference["step"], strict=True)]
    return {
        "step_cpu_ms": 1000 * statistics.median(one["step"]),
        "search_cpu_ms": 1000 * statistics.median(one["search"]),
        "ratio": statistics.median(ratios),
    }
