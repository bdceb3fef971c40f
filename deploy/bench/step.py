"""`hmn bench step`: a training step with K-MIPS attention against the full softmax over all facts."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deploy.console import Console
from deploy.options import examples, json_option
from memory_store import Memory, MemoryWriter, open_memory
from memory_store.progress import Progress, silent
from trainer.attention import FactSource, KMipsAttention
from trainer.encoders.tables import FeatureTable, RowAdagrad
from trainer.loss import reading_loss
from trainer.process import prepare_process

# N facts, D dimension, B questions, K facts retrieved per question, C candidates of a batch, W words of a question

__all__ = ["command", "run_step_bench"]

SIZES = (108_000, 1_000_000)
QUESTIONS, K, DIM, WORDS, VOCABULARY = 128, 10, 128, 10, 50_000
FACTS_AT_ONCE = 65_536


class _Model:
    """The memory network of Chandar et al. 2016 in its plainest form: both ways train exactly this.

    A question is the sum of its words' vectors through one linear layer; a fact is its row of a table.
    """

    def __init__(self, facts: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = 1 << (facts - 1).bit_length()  # feature tables have a power of two of rows; those beyond N are not used
        self.facts = FeatureTable(functional.normalize(torch.randn(rows, DIM, generator=generator)))
        self.words = FeatureTable(torch.randn(1 << (VOCABULARY - 1).bit_length(), DIM, generator=generator))
        self.linear = torch.nn.Linear(DIM, DIM)
        self.tables = RowAdagrad({"words": self.words, "facts": self.facts})
        self.network = torch.optim.Adam(self.linear.parameters())

    def encode_questions(self, word_BW: NDArray[np.int64]) -> Tensor:
        rows_UD, place_X = self.words.lookup(word_BW.reshape(-1))
        query_BD: Tensor = self.linear(rows_UD[place_X].view(*word_BW.shape, DIM).sum(dim=1))
        return query_BD


class _SearchedFacts:
    """Found by the memory's exact index, read from the table that learns."""

    def __init__(self, memory: Memory, table: FeatureTable) -> None:
        self._memory = memory
        self._table = table

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._memory.search(query_BD, k).fact_ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        rows_UD, place_C = self._table.lookup(fact_ids_C)
        return rows_UD[place_C]

    def all_ids(self) -> NDArray[np.int64]:
        raise AssertionError("K-MIPS attention never reads all facts")


def run_step_bench(
    *, sizes: tuple[int, ...] = SIZES, repeats: int = 7, threads: int = 2, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """Median times of a whole training step (encode, search, softmax, gradients, update), both ways, interleaved.

    The full softmax reads the fact table as one tensor and gets its dense gradient, which a dense Adagrad with the same
    arithmetic per row applies: the way it is written in any framework, without a detour. Both ways use `threads`.
    """
    prepare_process(threads)
    rows = [_measure(facts, repeats, threads, seed, progress) for facts in sizes]
    return {"questions": QUESTIONS, "k": K, "dim": DIM, "threads": threads, "repeats": repeats, "sizes": rows}


def _measure(facts: int, repeats: int, threads: int, seed: int, progress: Progress) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    searched, full = _Model(facts, seed), _Model(facts, seed)
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "memory")
        with MemoryWriter(url, dim=DIM) as writer:
            vectors_ND = searched.facts.weight_VW[:facts].numpy()
            for start in range(0, facts, FACTS_AT_ONCE):
                ids = np.arange(start, min(start + FACTS_AT_ONCE, facts))
                writer.append(pa.table({"fact_id": ids}), vectors_ND[ids])
        with open_memory(url, threads=threads) as memory:
            attention = KMipsAttention(K, "union")
            source = _SearchedFacts(memory, searched.facts)
            ways: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], int]] = {
                "k_mips": lambda words, gold: _searched_step(searched, attention, source, words, gold),
                "full_softmax": lambda words, gold: _full_step(full, facts, words, gold),
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
                    query_BD = searched.encode_questions(word_BW).numpy()
                started_s = time.perf_counter()
                memory.search(query_BD, K)
                search_s.append(time.perf_counter() - started_s)
                progress(f"step at {facts:,} facts", repeat, repeats, unit="repeats")
    searched_s, full_s = (statistics.median(seconds[name]) for name in ("k_mips", "full_softmax"))
    return {
        "facts": facts,
        "candidates": candidates,
        "k_mips_ms": 1000 * searched_s,
        "search_ms": 1000 * statistics.median(search_s[1:]),
        "full_softmax_ms": 1000 * full_s,
        "ratio": statistics.median(
            slow / fast for slow, fast in zip(seconds["full_softmax"], seconds["k_mips"], strict=True)
        ),
    }


def _searched_step(
    model: _Model,
    attention: KMipsAttention,
    source: FactSource,
    word_BW: NDArray[np.int64],
    gold_BG: NDArray[np.int64],
) -> int:
    model.network.zero_grad()
    reading = attention(model.encode_questions(word_BW), source, gold_BG)
    assert reading.gold_BC is not None
    reading_loss(reading.logits_BC, reading.gold_BC).backward()  # type: ignore[no-untyped-call]
    model.network.step()
    model.tables.step(0.01)
    return len(reading.fact_ids_C)


def _full_step(model: _Model, facts: int, word_BW: NDArray[np.int64], gold_BG: NDArray[np.int64]) -> int:
    model.network.zero_grad()
    fact_ND = model.facts.weight_VW[:facts].requires_grad_()
    logits_BN = model.encode_questions(word_BW) @ fact_ND.T
    functional.cross_entropy(logits_BN, torch.from_numpy(gold_BG[:, 0])).backward()  # type: ignore[no-untyped-call]
    grad_ND = fact_ND.grad
    assert grad_ND is not None
    model.network.step()
    with torch.no_grad():
        accumulator_N = model.tables.accumulator["facts"][:facts]
        accumulator_N += grad_ND.square().mean(dim=1)
        scale_N1 = accumulator_N.add(1e-16).rsqrt_().unsqueeze(1)
        model.facts.weight_VW[:facts].addcmul_(grad_ND, scale_N1, value=-0.01)
    taken = model.words.take_gradients()
    model.tables.step(0.01, {"words": taken} if taken else {})
    return facts


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
            f"{row['ratio']:.1f} times as fast"
        )
