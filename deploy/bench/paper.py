"""`hmn bench paper`: the experiments of Chandar et al. (2016), resumable, with a table and figures."""

from pathlib import Path
from typing import Any

import click

from deploy.bench.paper_cases import CASES, Source, chosen_cases, settings_key
from deploy.bench.paper_larger import LARGER, larger_key, run_larger
from deploy.bench.paper_page import write_page
from deploy.bench.paper_runs import TIMING, Results, run_case, run_timing
from deploy.console import Console, duration
from deploy.options import examples, json_option
from memory_store.errors import ConfigError
from memory_store.progress import Progress, silent

__all__ = ["command", "run_paper_bench"]

_REPEATS = 5


def run_paper_bench(
    data: Path | None,
    out: Path,
    *,
    seeds: int = 1,
    steps: int = 200,
    only: tuple[str, ...] = (),
    larger: tuple[Path, ...] = (),
    page: Path | None = None,
    threads: int = 2,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run what is not in out/results.jsonl yet, then write the page; returns the finished lines.

    data: the folder of SimpleQuestions; GeoNames where it is None. seeds: 0 to seeds - 1. only: names or groups of
    cases, and "timing"; all where it is empty. larger: files of facts, over which the steps are timed as well. page: a
    folder for the table and the figures, `out` itself if None.
    """
    source = Source.of(data)
    timing = not only or TIMING in only
    named = tuple(name for name in only if name != TIMING)
    cases = chosen_cases(named) if named or not only else []
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out)
    others = {line["data"] for line in results.lines()} - {source.name}
    if others:
        raise ConfigError(
            f"expected results on {source.name} in {out}, found some on {sorted(others)[0]}; name another folder with "
            "--out"
        )
    for seed in range(seeds):
        for number, case in enumerate(cases):
            progress(f"paper, seed {seed}", number, len(cases), unit="cases", note=case.name)
            if results.find(case.name, seed, settings_key(case, source, steps=steps)) is None:
                results.add(run_case(case, source, out, seed=seed, steps=steps, threads=threads, progress=progress))
        progress(f"paper, seed {seed}", len(cases), len(cases), unit="cases")
    if timing and results.find(TIMING, 0, settings_key(CASES[0], source, steps=steps)) is None:
        results.add(run_timing(source, out, seed=0, steps=steps, threads=threads, repeats=_REPEATS, progress=progress))
    for facts in larger:
        if results.find(LARGER, 0, larger_key(source, facts, steps=steps)) is None:
            results.add(
                run_larger(source, facts, out, steps=steps, threads=threads, repeats=_REPEATS, progress=progress)
            )
    keys = {case.name: settings_key(case, source, steps=steps) for case in CASES}
    keys[TIMING] = keys[CASES[0].name]
    keys[LARGER] = keys[CASES[0].name]
    lines = [line for line in results.lines() if keys.get(line["case"]) == line["settings"].partition("-")[0]]
    typed = f"hmn bench paper{' --data DIR' if data else ''} --seeds {seeds} --steps {steps} --threads {threads}"
    written = write_page(lines, page or out, source.name, steps, typed)
    return {"data": source.name, "steps": steps, "results": lines, "page": str(written)}


@click.command(
    "paper",
    epilog=examples(
        "hmn bench paper",
        "hmn bench paper --data data/simplequestions --only k10 --only full --seeds 3",
        "hmn bench paper --data data/simplequestions --out runs/paper --page docs/paper",
        "hmn bench paper --data data/simplequestions --only timing --larger data/kb/facts-3M.tsv.zst",
    ),
)
@click.option("--data", type=click.Path(path_type=Path), help="A folder with SimpleQuestions; else GeoNames is used.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/paper"),
    show_default=True,
    help="Where finished cases are kept; a rerun does the rest.",
)
@click.option("--page", type=click.Path(path_type=Path), help="Where the table and the figures go. [--out]")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each case.")
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Training steps of a run.")
@click.option("--only", multiple=True, metavar="NAME", help="A case, a group of cases, or timing; repeatable.")
@click.option(
    "--larger",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="A file of facts: the steps are timed over them as well; repeatable.",
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Threads of torch.")
@json_option
@click.pass_obj
def command(
    console: Console,
    data: Path | None,
    out: Path,
    page: Path | None,
    seeds: int,
    steps: int,
    only: tuple[str, ...],
    larger: tuple[Path, ...],
    threads: int,
) -> None:
    """Train with the full softmax and with K-MIPS, exact and approximate, and compare accuracy, size and time.

    Groups of cases: softmax (K = 10 to 1,000 against the full one), search (approximate indexes), bias (facts added at
    random), encoder (the gru). Every finished case is kept, so an interrupted command goes on where it was.
    """
    result = run_paper_bench(
        data,
        out,
        seeds=seeds,
        steps=steps,
        only=only,
        larger=larger,
        page=page,
        threads=threads,
        progress=console.progress,
    )

    def show() -> None:
        rows = [
            (
                line["case"],
                line["seed"],
                index,
                f"{test['accuracy']:.2%}",
                f"{line['softmax_size']:,.0f}",
                duration(line["train_cpu_s"]),
            )
            for line in result["results"]
            if line["case"] not in (TIMING, LARGER)
            for index, test in line["tests"].items()
        ]
        console.table(("case", "seed", "tested with", "accuracy", "softmax", "processor time"), rows)
        console.write(f"Page: {result['page']}")

    console.result(result, show)
