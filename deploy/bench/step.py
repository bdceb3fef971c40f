"""`hmn bench step`: a training step with K-MIPS attention against the full softmax over all facts."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from deploy.console import Console
from deploy.options import examples, json_option
from memory_store import Memory, MemoryWriter, open_memory
from memory_store.progress import Progress, silent
from trainer.attention import FactSource, KMipsAttention
from trainer.loss import reading_loss
from trainer.process import prepare_process

# N facts, D dimension, B questions, K facts retrieved per question, C candidates of a batch, W words of a question

__all__ = ["command", "run_step_bench"]

SIZES = (108_000, 1_000_000)
QUESTIONS, K, DIM, WORDS, VOCABULARY, RELATIONS = 128, 10, 128, 10, 50_000, 1_837
FACTS_AT_ONCE = 65_536


class _Model:
    """The memory network of Chandar et al. 2016: both ways train exactly this, with torch's own layers and Adam.

    A question is the sum of its words' vectors through one linear layer; a fact is the sum of the vectors of its
    subject, relation and object. sparse: gradients of embedding rows are kept as rows, which a step that reads few
    facts wants (SparseAdam); a step that reads all facts touches all rows, and is faster with dense ones (Adam).
    """

    def __init__(self, symbols_N3: NDArray[np.int64], *, sparse: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.symbols_N3 = torch.from_numpy(symbols_N3)
        self.words = nn.EmbeddingBag(VOCABULARY, DIM, mode="sum", sparse=sparse)
        self.symbols = nn.EmbeddingBag(int(symbols_N3.max()) + 1, DIM, mode="sum", sparse=sparse)
        self.linear = nn.Linear(DIM, DIM)
        tables = [self.words.weight, self.symbols.weight]
        for table in tables:
            nn.init.normal_(table, std=DIM**-0.5)
        if sparse:
            self.optimizers: list[torch.optim.Optimizer] = [
                torch.optim.SparseAdam(tables),
                torch.optim.Adam(self.linear.parameters()),
            ]
        else:
            self.optimizers = [torch.optim.Adam([*tables, *self.linear.parameters()])]

    def encode_questions(self, word_BW: Tensor) -> Tensor:
        query_BD: Tensor = self.linear(self.words(word_BW))
        return query_BD

    def encode_facts(self, fact_C: Tensor | None = None) -> Tensor:
        """fact_CD of these rows, or of all."""
        every = fact_C is None or len(fact_C) == len(self.symbols_N3)  # spares the full softmax a copy of all symbols
        fact_CD: Tensor = self.symbols(self.symbols_N3 if every else self.symbols_N3[fact_C])
        return fact_CD

    def learn(self, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        for optimizer in self.optimizers:
            optimizer.step()


class _Facts:
    """Found by the memory's exact index, encoded afresh by the model that learns."""

    def __init__(self, memory: Memory, model: _Model) -> None:
        self._memory = memory
        self._model = model
        self._all_ids_N = np.arange(len(model.symbols_N3))

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._memory.search(query_BD, k).fact_ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        return self._model.encode_facts(torch.from_numpy(fact_ids_C))

    def all_ids(self) -> NDArray[np.int64]:
        return self._all_ids_N


def run_step_bench(
    *, sizes: tuple[int, ...] = SIZES, repeats: int = 7, threads: int = 2, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """Median times of a whole training step (encode, search, softmax, gradients, update), both ways, interleaved.

    k_mips and full_softmax are one attention layer with other candidates: they compute the weights, the read vector and
    the loss, and share model, rule of learning and threads. cross_entropy is the full softmax written as tersely as
    torch can, without weights and read vector, so no longer a layer. The memory holds the vectors of the model as it
    starts; refreshing it takes time of its own, as in training.
    """
    prepare_process(threads)
    rows = [_measure(facts, repeats, threads, seed, progress) for facts in sizes]
    return {"questions": QUESTIONS, "k": K, "dim": DIM, "threads": threads, "repeats": repeats, "sizes": rows}


def _measure(facts: int, repeats: int, threads: int, seed: int, progress: Progress) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    symbols_N3 = _facts(rng, facts)
    searched = _Model(symbols_N3, sparse=True, seed=seed)
    full = _Model(symbols_N3, sparse=False, seed=seed)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        url = str(Path(folder) / "memory")
        with MemoryWriter(url, dim=DIM) as writer, torch.no_grad():
            for start in range(0, facts, FACTS_AT_ONCE):
                ids = np.arange(start, min(start + FACTS_AT_ONCE, facts))
                writer.append(pa.table({"fact_id": ids}), searched.encode_facts(torch.from_numpy(ids)).numpy())
        with open_memory(url, threads=threads) as memory:
            union, every = KMipsAttention(K, "union"), KMipsAttention(K, "full")
            ways: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], int]] = {
                "k_mips": partial(_attention_step, searched, union, _Facts(memory, searched)),
                "full_softmax": partial(_attention_step, full, every, _Facts(memory, full)),
                "cross_entropy": partial(_cross_entropy_step, full),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            search_s: list[float] = []
            candidates = 0
            for repeat in range(repeats + 1):
                word_BW = rng.integers(VOCABULARY, size=(QUESTIONS, WORDS))
                gold_BG = rng.integers(facts, size=(QUESTIONS, 1))
                for name, step in ways.items():
                    started_s = time.perf_counter()
                    read = step(word_BW, gold_BG)
                    if repeat:  # the first of each warms up
                        seconds[name].append(time.perf_counter() - started_s)
                    candidates = read if name == "k_mips" else candidates
                with torch.no_grad():
                    query_BD = searched.encode_questions(torch.from_numpy(word_BW)).numpy()
                started_s = time.perf_counter()
                memory.search(query_BD, K)
                search_s.append(time.perf_counter() - started_s)
                progress(f"step at {facts:,} facts", repeat, repeats, unit="repeats")
    middle_ms = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    return {
        "facts": facts,
        "candidates": candidates,
        "k_mips_ms": middle_ms["k_mips"],
        "search_ms": 1000 * statistics.median(search_s[1:]),
        "full_softmax_ms": middle_ms["full_softmax"],
        "cross_entropy_ms": middle_ms["cross_entropy"],
        "ratio": _ratio(seconds["full_softmax"], seconds["k_mips"]),
        "cross_entropy_ratio": _ratio(seconds["cross_entropy"], seconds["k_mips"]),
    }


def _ratio(slow: list[float], fast: list[float]) -> float:
    """The median of the ratios of steps that ran one after the other: what slows the machine slows both."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def _facts(rng: np.random.Generator, facts: int) -> NDArray[np.int64]:
    """Subject, relation and object of each fact [N, 3]; half as many entities as facts, as in Freebase."""
    entities = max(facts // 2, 1)
    return np.stack(
        [
            rng.integers(entities, size=facts),
            entities + rng.integers(RELATIONS, size=facts),
            rng.integers(entities, size=facts),
        ],
        axis=1,
    )


def _attention_step(
    model: _Model, attention: KMipsAttention, source: FactSource, word_BW: NDArray[np.int64], gold_BG: NDArray[np.int64]
) -> int:
    reading = attention(model.encode_questions(torch.from_numpy(word_BW)), source, gold_BG)
    assert reading.gold_BC is not None
    model.learn(reading_loss(reading.logits_BC, reading.gold_BC))
    return len(reading.fact_ids_C)


def _cross_entropy_step(model: _Model, word_BW: NDArray[np.int64], gold_BG: NDArray[np.int64]) -> int:
    logits_BN = model.encode_questions(torch.from_numpy(word_BW)) @ model.encode_facts().T
    model.learn(functional.cross_entropy(logits_BN, torch.from_numpy(gold_BG[:, 0])))
    return logits_BN.shape[1]


@click.command("step", epilog=examples("hmn bench step", "hmn bench step --facts 108000 --repeats 15 --json"))
@click.option("--facts", "sizes", type=int, multiple=True, help="Facts in the memory; repeatable. [108000, 1000000]")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Measured steps of each kind.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of both.")
@json_option
@click.pass_obj
def command(console: Console, sizes: tuple[int, ...], repeats: int, threads: int) -> None:
    """Time a training step of 128 questions: softmax over the K = 10 facts that MIPS finds, and over all facts."""
    result = run_step_bench(sizes=sizes or SIZES, repeats=repeats, threads=threads, progress=console.progress)
    console.result(result, lambda: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    for row in result["sizes"]:
        console.write(
            f"{row['facts']:>9,} facts: K-MIPS {row['k_mips_ms']:.1f} ms (search {row['search_ms']:.1f} ms, "
            f"{row['candidates']:,} candidates), full softmax {row['full_softmax_ms']:.0f} ms: "
            f"{row['ratio']:.1f} times as fast ({row['cross_entropy_ratio']:.1f} times against a bare cross-entropy)"
        )
