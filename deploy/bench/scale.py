"""`hmn bench scale`: what every stage costs as a memory grows: time, memory and disk against facts and shards."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deploy.bench.process_memory import run_measured
from deploy.bench.scale_records import Record, case_key, read_records
from deploy.bench.scale_report import exponents, fill_page, tables, write_charts
from deploy.console import Console
from deploy.options import examples, json_option
from memory_store.errors import ConfigError, HmnError
from memory_store.progress import Progress, silent

__all__ = ["command", "in_a_process", "plan_cases", "run_scale_bench"]

SIZES = ("1e5", "1e6", "2e6", "1e7")  # from 2^27 values on, `exact` keeps its copy in a file
SHARDS = (1, 2, 4)
KINDS = ("write", "exact", "faiss", "ivf", "recover", "ingest", "embed", "step", "reindex")
_SHARDED = ("exact", "ivf", "recover")  # measured at every number of shards; the others at one
_NEEDS = {
    "exact": "write",
    "faiss": "write",
    "ivf": "exact",
    "recover": "exact",
    "embed": "ingest",
    "step": "embed",
    "reindex": "embed",
}
_SAMPLE_EVERY_S = 1.0  # more often would slow down what is measured

Measured = tuple[list[dict[str, object]], int]
"""The stages of a case, and the peak bytes of all its processes."""


def plan_cases(
    sizes: Sequence[int], shards: Sequence[int], kinds: Sequence[str], *, threads: int, dim: int, dtype: str
) -> list[dict[str, object]]:
    """The cases in an order in which each finds what it needs, smallest sizes first; pure.

    shards: of the kinds that are measured at several numbers of them; the others have one.
    """
    return [
        {"kind": kind, "facts": facts, "shards": number, "threads": threads, "dim": dim, "dtype": dtype}
        for facts in sorted(sizes)
        for kind in KINDS
        if kind in kinds
        for number in (shards if kind in _SHARDED else (1,))
    ]


def run_scale_bench(
    results: Path,
    cases: Sequence[dict[str, object]],
    *,
    folder: Path | None = None,
    run: Callable[[dict[str, object], Path], Measured] | None = None,
    again: bool = False,
    progress: Progress = silent,
) -> list[Record]:
    """Run the cases that `results` does not hold yet, each in a process of its own, and add a line for each.

    again: run those that it holds as well, so that the best of both counts.

    folder: where the memories are made; what is there of an earlier run is used again. Without one, a temporary folder,
    and each size's memories go when its cases are done. run: another way to run a case in a folder. Returns all that
    `results` then holds of these cases. HmnError when a case fails; what was measured before it stays.
    """
    measure = run or in_a_process
    done = {case_key(record.case) for record in read_records(results)}
    wanted = [case for case in cases if again or case_key(case) not in done]
    results.parent.mkdir(parents=True, exist_ok=True)
    with _work_folder(folder) as work:
        for number, case in enumerate(wanted):
            at = work / f"{case['facts']}-{case['dim']}-{case['dtype']}"
            at.mkdir(parents=True, exist_ok=True)
            for needed in _missing(case, at):
                _measured(measure, needed, at)  # measured before, but its files are gone
            stages, peak = _measured(measure, case, at)
            record = Record(case=case, stages=tuple(stages), peak_bytes=peak)
            with results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(record)) + "\n")
            progress("scale", number + 1, len(wanted), unit="cases", note=f"{case['kind']} at {case['facts']:,}")
            last = number + 1 == len(wanted) or wanted[number + 1]["facts"] != case["facts"]
            if folder is None and last:
                shutil.rmtree(at)
    measured = {case_key(record.case): record for record in read_records(results)}
    return [measured[case_key(case)] for case in cases]


def _place(case: Mapping[str, Any]) -> tuple[int, int, int]:
    """Where plan_cases has it."""
    return case["facts"], KINDS.index(case["kind"]), case["shards"]


def _missing(case: dict[str, object], at: Path) -> list[dict[str, object]]:
    """The cases whose files this one needs and does not find, in order."""
    missing: list[dict[str, object]] = []
    needed = _NEEDS.get(str(case["kind"]))
    while needed is not None and not (at / f"{needed}.done").exists():
        missing.insert(0, {**case, "kind": needed, "shards": 1})
        needed = _NEEDS.get(needed)
    return missing


def _measured(run: Callable[[dict[str, object], Path], Measured], case: dict[str, object], at: Path) -> Measured:
    found = run(case, at)
    (at / f"{case['kind']}.done").touch()
    return found


def in_a_process(case: dict[str, object], at: Path) -> Measured:
    """Run a case in a process of its own."""
    output = at / "stages.json"
    output.unlink(missing_ok=True)
    args = [sys.executable, "-m", "deploy.bench.scale_cases", json.dumps(case), str(at), str(output)]
    status, peak = run_measured(args, every_s=_SAMPLE_EVERY_S)
    if status != 0 or not output.exists():
        raise HmnError(f"the case {case_key(case)} ended with exit status {status}; its message is above")
    stages: list[dict[str, object]] = json.loads(output.read_text(encoding="utf-8"))
    return stages, peak


@contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    made = Path(tempfile.mkdtemp(prefix="hmn-scale-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(float(word)) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"expected {option} as whole numbers with commas, such as 1e5,1e6; found {text!r}")
    return numbers


@click.command(
    "scale",
    short_help="What every stage costs against facts and shards.",
    epilog=examples(
        "hmn bench scale --sizes 1e4,1e5 --shards 1,2",
        "hmn bench scale --results scale.jsonl --folder /data/scale --only write,exact,faiss --sizes 1e7",
        "hmn bench scale --results scale.jsonl --charts charts",
    ),
)
@click.option("--sizes", default=",".join(SIZES), show_default=True, help="Facts, with commas.")
@click.option("--shards", default=",".join(map(str, SHARDS)), show_default=True, help="Numbers of shards, with commas.")
@click.option("--only", default=",".join(KINDS), show_default=True, help="Kinds of cases, with commas.")
@click.option("--dim", type=click.IntRange(min=2), default=128, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", help="Of the stored vectors."
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of all shards together.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("scale.jsonl"),
    show_default=True,
    help="One line per case; what it holds is not measured again.",
)
@click.option("--no-run", is_flag=True, help="Measure nothing: tables and charts of all that it holds.")
@click.option("--again", is_flag=True, help="Measure what it holds once more; the best counts.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the memories here, for another run to use.")
@click.option("--charts", type=click.Path(path_type=Path), help="Write the charts to this folder, as SVG.")
@click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False), help="Put the tables into this Markdown file's places."
)
@json_option
@click.pass_obj
def command(
    console: Console,
    sizes: str,
    shards: str,
    only: str,
    dim: int,
    dtype: str,
    threads: int,
    results: Path,
    no_run: bool,
    again: bool,
    folder: Path | None,
    charts: Path | None,
    page: Path | None,
) -> None:
    """Measure ingest, embed, write, open, exact and ivf search, re-index and a training step at every size.

    Each case runs in a process of its own. Ten million facts take up to 25 GiB of disk and 8 GiB of memory. A run that
    was stopped goes on where it was. Exponents are fitted to processor seconds, which other work on the machine
    disturbs least.
    """
    kinds = only.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"expected --only among {', '.join(KINDS)}, found {unknown[0]!r}")
    cases = plan_cases(
        _numbers(sizes, "--sizes"), _numbers(shards, "--shards"), kinds, threads=threads, dim=dim, dtype=dtype
    )
    if no_run:
        records = sorted(read_records(results), key=lambda record: _place(record.case))
    else:
        records = run_scale_bench(results, cases, folder=folder, again=again, progress=console.progress)
    if charts is not None:
        write_charts(records, charts)
    if page is not None:
        page.write_text(fill_page(page.read_text(encoding="utf-8"), tables(records)), encoding="utf-8")
    fitted = {name: asdict(law) for name, law in exponents(records).items()}
    console.result(
        {"records": records, "exponents": fitted}, lambda: console.write("\n\n".join(tables(records).values()))
    )
