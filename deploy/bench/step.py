"""`hmn bench step`: a training step with K-MIPS attention against the full softmax over all facts."""

import statistics
from typing import Any

import click

from deploy.bench.in_a_row import in_a_row
from deploy.bench.step_models import MODELS, QUESTIONS, K
from deploy.console import Console
from deploy.options import examples, json_option
from memory_store.progress import Progress, silent
from trainer.process import prepare_process

__all__ = ["command", "run_step_bench"]

SIZES = (108_000, 1_000_000)
_IN_A_ROW_S = 0.3  # steps of one kind, as in training
_MOST_IN_A_ROW = 100


def run_step_bench(
    *,
    models: tuple[str, ...] = tuple(MODELS),
    sizes: tuple[int, ...] = SIZES,
    repeats: int = 7,
    threads: int = 2,
    seed: int = 0,
    index: str = "exact",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Median times of a whole training step (encode, search, softmax, gradients, update), both ways, in rows in turn.

    The memory holds the vectors of the model as it starts; refreshing it takes time of its own, as in training.
    """
    prepare_process(threads)
    rows = [_measure(model, facts, repeats, threads, seed, index, progress) for model in models for facts in sizes]
    return {
        "questions": QUESTIONS,
        "k": K,
        "threads": threads,
        "repeats": repeats,
        "index": index,
        "steps": rows,
    }


def _measure(
    model: str, facts: int, repeats: int, threads: int, seed: int, index: str, progress: Progress
) -> dict[str, Any]:
    with MODELS[model](facts, threads, seed, index, progress) as (ways, search):
        seconds: dict[str, list[float]] = {name: [] for name in (*ways, "search")}
        candidates = 0
        for repeat in range(repeats + 1):
            first = repeat * _MOST_IN_A_ROW  # batches that no other repeat has
            for name, step in ways.items():
                taken_s, covered = in_a_row(step, _IN_A_ROW_S, first=first, most=_MOST_IN_A_ROW)
                seconds[name].append(taken_s)
                candidates = covered if name == "k_mips" else candidates
            seconds["search"].append(in_a_row(search, _IN_A_ROW_S, first=first, most=_MOST_IN_A_ROW)[0])
            progress(f"{model} step at {facts:,} facts", repeat, repeats, unit="repeats")
    counted = {name: values[1:] for name, values in seconds.items()}  # the first of each warms up
    return {
        "model": model,
        "facts": facts,
        "candidates": candidates,
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in counted.items()},
        **{f"{name}_ratio": _ratio(counted[name], counted["k_mips"]) for name in ways if name != "k_mips"},
    }


def _ratio(slow: list[float], fast: list[float]) -> float:
    """The median of the ratios of steps that ran one after the other: what slows the machine slows both."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


@click.command(
    "step",
    epilog=examples(
        "hmn bench step",
        "hmn bench step --model paper --facts 108000 --repeats 15 --json",
        "hmn bench step --index split",
    ),
)
@click.option(
    "--model", "models", type=click.Choice(tuple(MODELS)), multiple=True, help="What is trained; repeatable. [both]"
)
@click.option(
    "--facts", "sizes", type=click.IntRange(1), multiple=True, help="Facts in the memory; repeatable. [108000, 1000000]"
)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Measured steps of each kind.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of both.")
@click.option("--index", default="exact", show_default=True, help="What finds the facts; `hmn indexes` lists them.")
@json_option
@click.pass_obj
def command(
    console: Console, models: tuple[str, ...], sizes: tuple[int, ...], repeats: int, threads: int, index: str
) -> None:
    """Time a training step of 128 questions: softmax over the K = 10 facts that MIPS finds, and over all facts.

    default: the encoder and the step of `hmn train`. paper: a bag of symbols, the cheapest facts there are to encode.
    """
    result = run_step_bench(
        models=models or tuple(MODELS),
        sizes=sizes or SIZES,
        repeats=repeats,
        threads=threads,
        index=index,
        progress=console.progress,
    )
    console.result(result, lambda: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    for row in result["steps"]:
        bare = (
            f" ({row['cross_entropy_ratio']:.1f} times against a bare cross-entropy)"
            if "cross_entropy_ratio" in row
            else ""
        )
        console.write(
            f"{row['model']:>7}, {row['facts']:>9,} facts: K-MIPS {row['k_mips_ms']:.1f} ms (search "
            f"{row['search_ms']:.1f} ms, {row['candidates']:,} candidates), full softmax "
            f"{row['full_softmax_ms']:,.0f} ms: {row['full_softmax_ratio']:.1f} times as fast{bare}"
        )
