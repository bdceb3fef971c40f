"""What `hmn bench scale` runs, one case in one process: it builds on the memories that the cases before it left."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deploy.bench.process_memory import OwnMemory
from memory_store.memory import Memory
from memory_store.opening import open_memory
from memory_store.writer import MemoryWriter

# N facts, n of them in a block, D dimension, B queries, K slots, L clusters

__all__ = ["CASES", "Case", "Stage", "block_of", "queries_of", "run_case"]

K, QUERIES, DIM = 10, 128, 128
BLOCK_ROWS = 2**18
ROWS_PER_CLUSTER = 1000  # of the made vectors: more facts are more things to know, not more of the same
NOISE = 0.5  # beside cluster centres whose values have variance 1
CHECKED = 32  # queries whose recall is computed
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WANTED_RECALL = 0.95
IVF = "ivf?levels=2"
_TURNS = 5
_MOST_TURNS, _TURNS_CPU_S = 3, 15.0  # of what builds something: again while all turns together took less
_STEPS = 6
_OPENINGS = 3  # one is too short to be told from what else runs
_PAUSE_S = 0.3  # faiss's threads spin for a while after their work
_CENTRES, _ROWS, _QUERIES = range(3)  # streams of random numbers
_ANSWERED_WITHIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process of the bench. kind: a name of CASES; facts: N; shards: of the memory, where the kind opens one."""

    kind: str
    facts: int
    shards: int = 1
    threads: int = 2
    dim: int = DIM
    dtype: str = "float32"

    @property
    def key(self) -> str:
        """Names the case among all: what has this key was measured already."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One measured piece of work: wall and processor seconds of its best turn, and the most memory it took (files that
    are mapped apart). Processor seconds are of this process: of Ray's actors they are not known, and None.

    figures: what else the stage found.
    """

    name: str
    wall_s: float
    cpu_s: float | None
    peak_bytes: int
    figures: dict[str, float] = field(default_factory=dict)


class _Stages:
    """Measures the stages of a case."""

    def __init__(self) -> None:
        self.done: list[Stage] = []

    @contextmanager
    def measured(self, name: str, *, elsewhere: bool = False) -> Iterator[dict[str, float]]:
        """Time the block. elsewhere: other processes do the work. Yields a dict for figures."""
        figures: dict[str, float] = {}
        with OwnMemory() as memory:
            began_s, worked_s = time.perf_counter(), time.process_time()
            yield figures
            wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - worked_s
        self.done.append(
            Stage(
                name=name,
                wall_s=wall_s,
                cpu_s=None if elsewhere else cpu_s,
                peak_bytes=memory.peak_bytes,
                figures=figures,
            )
        )

    def keep_best(self, *names: str) -> None:
        """Make one stage of those of a name: the best turn counts, the memory of the first, the figures of the last."""
        for name in names:
            turns = [stage for stage in self.done if stage.name == name]
            place = self.done.index(turns[0])
            wall_s = min(stage.wall_s for stage in turns)
            cpu_s = min((stage.cpu_s for stage in turns if stage.cpu_s is not None), default=None)
            self.done = [stage for stage in self.done if stage.name != name]
            self.done.insert(place, replace(turns[0], wall_s=wall_s, cpu_s=cpu_s, figures=turns[-1].figures))

    def in_turns(
        self, name: str, turn: Callable[[int], "_Seconds"], ready: Callable[[], object], **figures: float
    ) -> None:
        """`turn(number)`, which times itself, once, and again while that is short. ready: called before each.

        The best turn counts, and the memory of the first. The first also pays for what a process does once, such as
        getting its memory from the system: the figure first_turn_cpu_s, where there are others.
        """
        taken: list[_Seconds] = []
        peaks: list[int] = []
        while not taken or (len(taken) < _MOST_TURNS and sum(cpu_s for _, cpu_s in taken) < _TURNS_CPU_S):
            ready()
            with OwnMemory() as memory:
                taken.append(turn(len(taken)))
            peaks.append(memory.peak_bytes)
        if len(taken) > 1:
            figures["first_turn_cpu_s"] = taken[0][1]
        self._best(name, taken, peaks[0], figures)

    def best_of(self, name: str, turns: int, work: Callable[[int], object], **figures: float) -> None:
        """Time `work(turn)` several times, once before to warm up; the best turn counts, as the least disturbed."""
        with OwnMemory() as memory:
            taken = [_timed(work, turn) for turn in range(turns + 1)][1:]
        self._best(name, taken, memory.peak_bytes, figures)

    def _best(self, name: str, taken: Sequence["_Seconds"], peak_bytes: int, figures: dict[str, float]) -> None:
        wall_s, cpu_s = (min(seconds) for seconds in zip(*taken, strict=True))
        self.done.append(Stage(name=name, wall_s=wall_s, cpu_s=cpu_s, peak_bytes=peak_bytes, figures=figures))


_Seconds = tuple[float, float]
"""Of the clock, of the processor."""


def _timed(work: Callable[[int], object], turn: int) -> _Seconds:
    began_s, worked_s = time.perf_counter(), time.process_time()
    work(turn)
    return time.perf_counter() - began_s, time.process_time() - worked_s


# Made vectors


def block_of(number: int, rows: int, facts: int, dim: int) -> NDArray[np.float32]:
    """Block `number` of a memory of clustered vectors [rows, dim]; the same for the same arguments."""
    centres_LD = _centres(facts, dim)
    rng = np.random.default_rng([_ROWS, number])
    block_nD = rng.standard_normal((rows, dim), dtype=np.float32)
    block_nD *= np.float32(NOISE)
    block_nD += centres_LD[rng.integers(len(centres_LD), size=rows)]
    return block_nD


def queries_of(number: int, facts: int, dim: int, batch: int = QUERIES) -> NDArray[np.float32]:
    """Queries near clusters of the memory [batch, dim]."""
    centres_LD = _centres(facts, dim)
    rng = np.random.default_rng([_QUERIES, number])
    noise_BD = rng.standard_normal((batch, dim), dtype=np.float32) * np.float32(NOISE)
    queries_BD: NDArray[np.float32] = centres_LD[rng.integers(len(centres_LD), size=batch)] + noise_BD
    return queries_BD


def _centres(facts: int, dim: int) -> NDArray[np.float32]:
    clusters = max(facts // ROWS_PER_CLUSTER, 16)
    return np.random.default_rng(_CENTRES).standard_normal((clusters, dim), dtype=np.float32)


def _blocks(case: Case) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    for number, start in enumerate(range(0, case.facts, BLOCK_ROWS)):
        stop = min(start + BLOCK_ROWS, case.facts)
        yield np.arange(start, stop), block_of(number, stop - start, case.facts, case.dim)


# Cases: each takes the folder of its size, and leaves there what later ones need


def _write(case: Case, folder: Path, stages: _Stages) -> None:
    def write(_turn: int) -> _Seconds:
        made: list[_Seconds] = []
        blocks = _blocks(case)

        def rest(_turn: int) -> None:
            with MemoryWriter(str(folder / "vectors"), dim=case.dim, dtype=case.dtype) as writer:
                while True:
                    began_s, worked_s = time.perf_counter(), time.process_time()
                    block = next(blocks, None)
                    made.append((time.perf_counter() - began_s, time.process_time() - worked_s))
                    if block is None:
                        return
                    writer.append(pa.table({"fact_id": block[0]}), block[1])

        wall_s, cpu_s = _timed(rest, 0)
        # The vectors are made as they are written; nobody's memory has to do that.
        return wall_s - sum(wall_s for wall_s, _ in made), cpu_s - sum(cpu_s for _, cpu_s in made)

    stages.in_turns("write", write, partial(shutil.rmtree, folder / "vectors", ignore_errors=True))
    stages.done[-1].figures["disk_bytes"] = _disk_bytes(folder / "vectors")


def _exact(case: Case, folder: Path, stages: _Stages) -> None:
    url = str(folder / "vectors")
    with stages.measured("open, first time"), open_memory(url, case.shards, threads=_each(case)):
        pass
    for turn in range(_OPENINGS):
        with stages.measured("open"):
            memory = open_memory(url, case.shards, threads=_each(case))
        with memory:
            with stages.measured("first search") as figures:
                found = memory.search(queries_of(0, case.facts, case.dim), K)
            if turn + 1 == _OPENINGS:
                _search(stages, memory, case, "exact search")
                figures["index_bytes"] = _index_bytes(memory, case)
    stages.keep_best("open", "first search")
    np.save(folder / "exact.npy", found.fact_ids_BK[:CHECKED])


def _faiss(case: Case, folder: Path, stages: _Stages) -> None:
    """faiss IndexFlatIP with BLAS, and beside it the exact index: in turns, over the same rows, with equal threads.

    faiss gets a block of the rows after the other, so that the memory need not be there twice; its time is the sum.
    """
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 0
    faiss.omp_set_num_threads(case.threads)
    queries_BD = queries_of(1, case.facts, case.dim)
    faiss_s, faiss_cpu_s = 0.0, 0.0
    exact: list[tuple[float, float]] = []
    with open_memory(str(folder / "vectors"), threads=case.threads) as memory, OwnMemory() as held:
        memory.search(queries_BD, K)
        best: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        for number, (ids_n, block_nD) in enumerate(_blocks(case)):
            index = faiss.IndexFlatIP(case.dim)
            index.add(block_nD)
            if number == 0:
                index.search(queries_BD, K)
            began_s, worked_s = time.perf_counter(), time.process_time()
            scores_BK, rows_BK = index.search(queries_BD, K)
            faiss_s += time.perf_counter() - began_s
            faiss_cpu_s += time.process_time() - worked_s
            best = _merged(best, scores_BK, ids_n[rows_BK])
            time.sleep(_PAUSE_S)
            if number < _TURNS:
                exact.append(_timed(lambda _: memory.search(queries_BD, K), 0))
        while len(exact) < _TURNS:
            exact.append(_timed(lambda _: memory.search(queries_BD, K), 0))
        found = memory.search(queries_BD, K)
    assert best is not None
    same = float((found.fact_ids_BK == best[1]).mean())  # in float32, near ties may swap
    exact_s, exact_cpu_s = (float(np.median(times)) for times in zip(*exact, strict=True))
    figures = {
        "exact_s": exact_s,
        "times_as_fast": faiss_s / exact_s,
        "times_as_little_work": faiss_cpu_s / exact_cpu_s,
        "same": same,
    }
    stages.done.append(
        Stage(name="faiss with BLAS", wall_s=faiss_s, cpu_s=faiss_cpu_s, peak_bytes=held.peak_bytes, figures=figures)
    )


def _merged(
    best: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
    scores_BK: NDArray[np.float32],
    ids_BK: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if best is not None:
        scores_BK, ids_BK = np.hstack([best[0], scores_BK]), np.hstack([best[1], ids_BK])
    order_BK = np.argsort(-scores_BK, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(scores_BK, order_BK, axis=1), np.take_along_axis(ids_BK, order_BK, axis=1)


def _ivf(case: Case, folder: Path, stages: _Stages) -> None:
    url = str(folder / "vectors")
    expected_BK = np.load(folder / "exact.npy")
    with stages.measured("ivf build"), open_memory(url, case.shards, IVF, threads=_each(case), recall_share=0):
        pass
    for number, probes in enumerate(PROBES):
        with stages.measured("ivf open"):
            memory = open_memory(url, case.shards, f"{IVF}&nprobe={probes}", threads=_each(case), recall_share=0)
        if number:
            stages.done.pop()  # the first is enough
        with memory:
            found = memory.search(queries_of(0, case.facts, case.dim)[:CHECKED], K)
            recall = _recall(found.fact_ids_BK, expected_BK)
            if recall >= WANTED_RECALL or probes == PROBES[-1]:
                _search(stages, memory, case, "ivf search", nprobe=probes, recall=recall)
                stages.done[-1].figures["index_bytes"] = _index_bytes(memory, case)
                return


def _recover(case: Case, folder: Path, stages: _Stages) -> None:
    """kill -9 of one shard's actor on Ray, and how long until a search is answered, by all shards, rightly."""
    import os
    import signal

    from memory_store.ray_session import ensure_ray

    ensure_ray(max(case.threads, case.shards))
    expected_BK = np.load(folder / "exact.npy")
    queries_BD = queries_of(0, case.facts, case.dim)
    with open_memory(
        str(folder / "vectors"), case.shards, backend="ray", threads=_each(case), deadline_s=_ANSWERED_WITHIN_S
    ) as memory:
        memory.search(queries_BD, K)
        os.kill(memory.stats().shards[0].pid, signal.SIGKILL)
        with stages.measured("killed shard serves again", elsewhere=True) as figures:
            found = memory.search(queries_BD, K)
        figures["wrong"] = float((found.fact_ids_BK[:CHECKED] != expected_BK).any(axis=1).sum())


def _ingest(case: Case, folder: Path, stages: _Stages) -> None:
    from deploy.bench.step_models import Generated
    from pipeline.ingest import ingest

    triples, names = folder / "facts.tsv", folder / "names.tsv"
    Generated.write(case.facts, triples, names, seed=0)
    try:
        stages.in_turns(
            "ingest",
            partial(_timed, lambda _: ingest(str(triples), str(folder / "text"), names=str(names))),
            partial(shutil.rmtree, folder / "text", ignore_errors=True),
            source_bytes=float(triples.stat().st_size + names.stat().st_size),
        )
        stages.done[-1].figures["disk_bytes"] = _disk_bytes(folder / "text")
    finally:
        triples.unlink()
        names.unlink()


def _embed(case: Case, folder: Path, stages: _Stages) -> None:
    from memory_store.errors import HmnError
    from memory_store.manifest import read_manifest
    from memory_store.storage import Storage
    from memory_store.upkeep import sweep
    from pipeline.embed import embed
    from trainer.process import keep_freed_memory
    from trainer.refresh import FactEmbedder

    keep_freed_memory()  # as `hmn embed` does
    encoder, url = _encoder(case, seed=0), str(folder / "text")
    if read_manifest(Storage(url)).vectors:
        raise HmnError(f"the memory in {folder} is embedded already, by a run that was stopped; delete the folder")

    def work(turn: int) -> None:
        fingerprint = f"{encoder.fingerprint()}-{turn}"  # by one and the same, nothing would be left to do
        embed(url, lambda: FactEmbedder(encoder, remember=0), fingerprint=fingerprint, dim=encoder.dim)

    swept = partial(sweep, Storage(url), keep_last=1)
    stages.in_turns("embed", partial(_timed, work), swept, starting_cpu_s=time.process_time())
    swept()


def _reindex(case: Case, folder: Path, stages: _Stages) -> None:
    from memory_store.storage import Storage
    from memory_store.upkeep import sweep
    from trainer.process import keep_freed_memory
    from trainer.refresh import FactEmbedder

    keep_freed_memory()
    encoder, url = _encoder(case, seed=1), str(folder / "text")
    swept = partial(sweep, Storage(url), keep_last=1)
    with open_memory(url, case.shards, threads=_each(case)) as memory:
        work = partial(_timed, lambda _: memory.reindex(FactEmbedder(encoder, remember=0)))
        stages.in_turns("re-index", work, swept)
    swept()


def _step(case: Case, folder: Path, stages: _Stages) -> None:
    """A training step of the default encoder; its candidates come from an ivf index over what `embed` wrote."""
    from deploy.bench.step_models import Generated, default_step
    from trainer.process import prepare_process
    from trainer.sources import EncodedFacts

    prepare_process(case.threads)
    encoder = _encoder(case, seed=0)
    asked = Generated.draw(case.facts, seed=0)
    with open_memory(str(folder / "text"), index=IVF, threads=case.threads, recall_share=0) as memory:
        source = EncodedFacts(memory, encoder)
        stages.best_of("training step", _STEPS, default_step(encoder, source, "union", asked, case.threads))

        def search(turn: int) -> None:
            memory.search(encoder.ask(asked.batch(turn).texts).numpy(), K)

        stages.best_of("search of a training step", _STEPS, search)


CASES: dict[str, tuple[Callable[[Case, Path, _Stages], None], str]] = {
    "write": (_write, ""),
    "exact": (_exact, "write"),
    "faiss": (_faiss, "write"),
    "ivf": (_ivf, "exact"),
    "recover": (_recover, "exact"),
    "ingest": (_ingest, ""),
    "embed": (_embed, "ingest"),
    "step": (_step, "embed"),
    "reindex": (_reindex, "embed"),
}
"""Kind of case -> (what runs it, the kind whose files it needs)."""


def run_case(case: Case, folder: Path) -> list[Stage]:
    """Run a case in this process; its prerequisites lie in the folder already."""
    if CASES[case.kind][1] in ("write", "exact"):
        from memory_store.mips import registry  # noqa: F401  # seconds of torch and faiss, which no stage is to bear
    pa.array([0])  # imports pandas
    stages = _Stages()
    CASES[case.kind][0](case, folder, stages)
    return stages.done


def _each(case: Case) -> int:
    return max(1, case.threads // case.shards)


def _search(stages: _Stages, memory: Memory, case: Case, name: str, **figures: float) -> None:
    batches = [queries_of(turn, case.facts, case.dim) for turn in range(_TURNS + 1)]
    stages.best_of(f"{name}, one query", _TURNS, lambda turn: memory.search(batches[turn][:1], K))
    stages.best_of(name, _TURNS, lambda turn: memory.search(batches[turn], K), **figures)


def _recall(found_BK: NDArray[np.int64], expected_BK: NDArray[np.int64]) -> float:
    hits = sum(len(np.intersect1d(one, other)) for one, other in zip(found_BK, expected_BK, strict=True))
    return hits / expected_BK.size


def _index_bytes(memory: Memory, case: Case) -> float:
    item = 4 if case.dtype == "float32" else 2
    return float(sum(shard.bytes for shard in memory.stats().shards) - case.facts * (case.dim * item + 24))


def _disk_bytes(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def _encoder(case: Case, seed: int) -> Any:
    from trainer.encoders.registry import make_encoder
    from trainer.encoders.settings import ModelConfig

    half = case.dim // 2
    return make_encoder(ModelConfig(entity_dim=half, relation_dim=case.dim - half), seed)


def main(args: list[str]) -> None:
    """`python -m deploy.bench.scale_cases CASE FOLDER OUTPUT`: run a case, given as JSON; write its stages as JSON."""
    case, folder, output = Case(**json.loads(args[0])), Path(args[1]), Path(args[2])
    output.write_text(json.dumps([asdict(stage) for stage in run_case(case, folder)]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
