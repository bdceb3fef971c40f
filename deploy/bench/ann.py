"""`hmn bench ann`: recall against queries per second, our indexes beside other libraries, on four kinds of vectors."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from deploy.bench.ann_case import QUERIES, VECTORS
from deploy.bench.ann_engines import ENGINES
from deploy.bench.ann_tables import case_rows, describe, tables_of, write_pages
from deploy.bench.ann_vectors import KINDS, TrainedSource, draw
from deploy.console import Console
from deploy.options import examples, json_option
from memory_store.errors import ConfigError, InputError
from memory_store.progress import Progress, silent

# N rows, D dimension, B queries, K slots

__all__ = ["command", "run_ann_bench"]

SIZES = (100_000, 1_000_000)
_MESSAGE_LINES = 3  # of what a case that ended badly wrote last


def run_ann_bench(
    kinds: Sequence[str] = KINDS,
    sizes: Sequence[int] = SIZES,
    engines: Sequence[str] = tuple(ENGINES),
    *,
    results: Path,
    dim: int = 128,
    queries: int = 1024,
    batch: int = 128,
    k: int = 10,
    threads: int = 2,
    turns: int = 9,
    seed: int = 0,
    trained: TrainedSource | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every case that is not in the file of results yet, and append it there as one line of JSON.

    What was measured on another kind of processor stays there beside. A case is one engine on one kind of vectors in
    one size, in a process of its own with `threads` threads. dim: of the kinds that are drawn; trained vectors have the
    run's. batch: queries searched at once; the file may hold results of several. Raises ConfigError for an unknown kind
    or engine, and where the file of results was measured with other settings.
    """
    for what, names, known in (("kind of vectors", kinds, KINDS), ("engine", engines, tuple(ENGINES))):
        for name in names:
            if name not in known:
                raise ConfigError(f"expected a {what} of {', '.join(known)}, found {name!r}")
    settings = {"queries": queries, "k": k, "threads": threads, "seed": seed}
    measured = list(_read(results, settings))
    processor = _processor()
    done = {
        (case["kind"], case["rows"], case["engine"])
        for case in measured
        if (case["processor"], case["batch"]) == (processor, batch)
    }
    skipped: list[dict[str, Any]] = []
    wanted = [(kind, rows) for kind in kinds for rows in sizes]
    for number, (kind, rows) in enumerate(wanted):
        missing = [name for name in engines if (kind, rows, name) not in done]
        absent = [name for name in missing if find_spec(ENGINES[name].package) is None]
        for name in absent:
            reason = f"{ENGINES[name].package} is not installed; pip install 'hmn[bench]'"
            skipped.append({"kind": kind, "rows": rows, "engine": name, "reason": reason})
        missing = [name for name in missing if name not in absent]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="hmn-ann-") as folder:
            try:
                vectors = draw(kind, rows, dim, queries, seed, trained)
            except InputError as reason:
                skipped += [{"kind": kind, "rows": rows, "engine": name, "reason": str(reason)} for name in missing]
                continue
            found_dim, note = vectors.vectors_ND.shape[1], vectors.note
            np.save(Path(folder) / VECTORS, vectors.vectors_ND)
            np.save(Path(folder) / QUERIES, vectors.queries_BD)
            del vectors
            for at, name in enumerate(missing):
                progress(f"{kind}, {rows:,} rows: {name}", at, len(missing), unit="engines")
                found = _measure(Path(folder), name, batch=batch, k=k, threads=threads, turns=turns)
                if "reason" in found:
                    skipped.append({"kind": kind, "rows": rows, "engine": name, **found})
                    continue
                case = {"kind": kind, "rows": rows, "engine": name, "dim": found_dim, "note": note, "turns": turns}
                case |= {**settings, "batch": batch, "processor": processor, **found}
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(case) + "\n")
                measured.append(case)
        progress("sets of vectors", number + 1, len(wanted), unit="sets")
    order = {name: number for number, name in enumerate(ENGINES)}
    measured.sort(
        key=lambda case: (
            case["processor"] != processor,
            case["processor"],
            KINDS.index(case["kind"]),
            case["rows"],
            -case["batch"],
            order.get(case["engine"], len(order)),
        )
    )
    return {**settings, "batch": batch, "results": str(results), "cases": measured, "skipped": skipped}


def _read(results: Path, settings: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The cases measured before; the last line may be half of one, where a run was killed while it wrote."""
    if not results.exists():
        return
    text = results.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        results.write_text(whole, encoding="utf-8")
    for number, line in enumerate(whole.splitlines(), 1):
        case: dict[str, Any] = json.loads(line)
        for name, value in settings.items():
            if case.get(name) != value:
                raise ConfigError(
                    f"expected {results} to hold results with {name} = {value}, found {case.get(name)} in line "
                    f"{number}; name another file with --results"
                )
        yield case


def _measure(folder: Path, engine: str, **settings: int) -> dict[str, Any]:
    """What the case says of itself, or the reason why there is nothing."""
    threads = str(settings["threads"])
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    argument = json.dumps({"folder": str(folder), "engine": engine, **settings})
    done = subprocess.run(
        [sys.executable, "-m", "deploy.bench.ann_case", argument],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-_MESSAGE_LINES:]) or "no message"
        return {"reason": f"ended with exit status {done.returncode}: {last}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _processor() -> str:
    """What the processor calls itself, and how many there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.processor() or platform.machine()}"


@click.command(
    "ann",
    epilog=examples(
        "hmn bench ann --results ann.jsonl",
        "hmn bench ann --results ann.jsonl --memory memories/kb --run runs/kb --kinds trained",
        "hmn bench ann --results ann.jsonl --engines exact,split,hnswlib --sizes 100000 --docs docs",
        "hmn bench ann --results ann.jsonl --batch 1 --sizes 1000000",
    ),
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("ann.jsonl"),
    show_default=True,
    help="JSON lines, one per case; cases that are there are not measured again.",
)
@click.option("--kinds", default=",".join(KINDS), show_default=True, help="Kinds of vectors, with commas between.")
@click.option("--sizes", default=",".join(map(str, SIZES)), show_default=True, help="Numbers of rows.")
@click.option("--engines", default=",".join(ENGINES), show_default=True, help="Which, with commas between.")
@click.option("--memory", "url", metavar="URL", help="For trained vectors: a memory embedded by the run.")
@click.option("--run", type=click.Path(path_type=Path, file_okay=False), help="The run that embedded it.")
@click.option("--dim", type=click.IntRange(2), default=128, show_default=True, help="Of vectors that are drawn.")
@click.option("--queries", type=click.IntRange(1), default=1024, show_default=True, help="For recall.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Searched at once.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of every engine.")
@click.option("--turns", type=click.IntRange(1), default=9, show_default=True, help="Timed, per effort.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--docs",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Write tables into indexes.md of this folder, and figures beside it.",
)
@json_option
@click.pass_obj
def command(
    console: Console,
    results: Path,
    kinds: str,
    sizes: str,
    engines: str,
    url: str | None,
    run: Path | None,
    docs: Path | None,
    dim: int,
    queries: int,
    batch: int,
    k: int,
    threads: int,
    turns: int,
    seed: int,
) -> None:
    """Recall@K against queries per second, build time and memory of every index, ours and others', side by side.

    Every search is timed in turns with our exact index, in one process, with equal threads; faiss uses BLAS from the
    first query on. Libraries that are not installed are left out, with a line that says so.
    """
    if (url is None) != (run is None):
        raise click.UsageError("expected --memory and --run together")
    try:
        rows = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise click.UsageError(f"expected --sizes as whole numbers with commas between, found {sizes!r}") from None
    found = run_ann_bench(
        kinds.split(","),
        rows,
        engines.split(","),
        results=results,
        trained=None if url is None or run is None else TrainedSource(memory=url, run=run),
        progress=console.progress,
        dim=dim,
        queries=queries,
        batch=batch,
        k=k,
        threads=threads,
        turns=turns,
        seed=seed,
    )
    if docs is not None:
        write_pages(docs, found["cases"])
    console.result(found, lambda: _show(console, found))


def _show(console: Console, found: Mapping[str, Any]) -> None:
    for here in tables_of(found["cases"]).values():
        columns, table = case_rows(here)
        console.table(columns, table, title=describe(here[0]))
        console.write()
    for one in found["skipped"]:
        console.write(f"left out: {one['kind']}, {one['rows']:,} rows, {one['engine']}: {one['reason']}")
