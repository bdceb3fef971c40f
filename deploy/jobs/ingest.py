"""`hmn ingest`: raw facts into a generation of a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.console import Console, duration, size
from deploy.entry import main
from deploy.lasting import refuse_lost
from deploy.options import backend_option, examples, grouping_option, json_option, memory_option, workers_option

if TYPE_CHECKING:
    from pipeline.ingest import IngestSummary

__all__ = ["command", "show_ingest"]


@click.command(
    "ingest",
    short_help="Raw facts into a memory.",
    epilog=examples(
        "hmn ingest builtin:geonames --memory memories/geonames",
        "hmn ingest facts.tsv.gz more/*.parquet --memory memories/mine --strict",
        "hmn ingest freebase-FB2M.txt --names names.tsv --memory memories/fb2m --backend ray",
    ),
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@memory_option
@click.option("--names", multiple=True, metavar="FILE", help="A file of entity id and name; repeatable.")
@grouping_option
@click.option("--strict", is_flag=True, help="Stop at the first bad row instead of putting it into quarantine.")
@backend_option
@workers_option
@json_option
@click.pass_obj
def command(
    console: Console,
    sources: tuple[str, ...],
    url: str,
    names: tuple[str, ...],
    grouping: str,
    strict: bool,
    backend: str,
    workers: int | None,
) -> None:
    """Read facts from every SOURCE and commit them as one generation of the memory.

    SOURCE is a file, a glob, a directory or a URL: TSV, CSV, JSONL, Parquet, N-Triples or the SimpleQuestions layout,
    plain, .gz or .zst; or builtin:geonames. What the memory holds already is merged, not repeated. A run that was
    killed goes on where it was.
    """
    from pipeline.ingest import ingest

    refuse_lost({"--memory": url})
    summary = ingest(
        sources,
        url,
        names=names,
        grouping=grouping,
        strict=strict,
        backend=backend,
        workers=workers,
        progress=console.progress,
    )
    console.result(
        {"memory": url, "rows_per_second": summary.rows_per_second, **vars(summary)},
        lambda: show_ingest(console, url, summary),
    )


def show_ingest(console: Console, url: str, summary: IngestSummary) -> None:
    """What an ingest did, for a person."""
    if not summary.committed:
        console.write(f"Nothing new: generation {summary.generation} of {url} holds these facts already.")
    rows: dict[str, object] = {
        "memory": f"{url}, generation {summary.generation}",
        "facts": summary.facts,
        "entities": summary.entities,
        "rows read": f"{summary.triples:,} in {duration(summary.seconds)} ({summary.rows_per_second:,.0f} a second)",
        "duplicates": summary.duplicates,
        "quarantined": summary.quarantined,
        "size": size(summary.bytes),
    }
    console.pairs(rows)
    if summary.quarantine:
        console.write(f"Rejected rows, with file, line and reason: {url.rstrip('/')}/{summary.quarantine}")
    if summary.skipped:
        console.write(f"Files without facts, skipped: {', '.join(summary.skipped)}")


if __name__ == "__main__":
    main(command)
