"""`hmn upsert`: fresh facts into a memory that serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.console import Console, duration
from deploy.entry import main
from deploy.options import examples, json_option, memory_option

if TYPE_CHECKING:
    from pipeline.upsert import WriteSummary

__all__ = ["command", "show_write"]


@click.command(
    "upsert",
    short_help="Fresh facts into a memory that serves.",
    epilog=examples(
        "hmn upsert news.tsv --memory memories/geonames --model runs/geonames",
        "hmn upsert corrections.jsonl --memory s3://bucket/memory --model runs/geonames --note 'ticket 4711'",
    ),
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@memory_option
@click.option("--model", "run_dir", metavar="RUN", required=True, help="The run whose model embedded the memory.")
@click.option("--names", multiple=True, metavar="FILE", help="A file of entity id and name; repeatable.")
@click.option("--strict", is_flag=True, help="Stop at the first bad row instead of putting it into quarantine.")
@click.option("--note", metavar="TEXT", help="For the history that hmn inspect shows; default: the sources.")
@json_option
@click.pass_obj
def command(
    console: Console,
    sources: tuple[str, ...],
    url: str,
    run_dir: str,
    names: tuple[str, ...],
    strict: bool,
    note: str | None,
) -> None:
    """Put the facts of every SOURCE into the memory as one generation: new ones beside, known ones replaced.

    SOURCE is what hmn ingest reads. A fact becomes what its triples say here; hmn ingest would add to it. Nothing else
    is written or embedded again, and searches go on.
    """
    from deploy.jobs.embed import make_embedder
    from pipeline.upsert import upsert
    from trainer.run import load_run

    fingerprint = load_run(run_dir)[2].fingerprint()
    summary = upsert(
        sources, url, make_embedder(run_dir), fingerprint=fingerprint, names=names, strict=strict, note=note
    )
    console.result({"memory": url, **vars(summary)}, lambda: show_write(console, url, summary, "upserted"))


def show_write(console: Console, url: str, summary: WriteSummary, done: str) -> None:
    """What an upsert or a delete did, for a person."""
    if not summary.committed:
        console.write(f"Nothing to do: generation {summary.generation} of {url} is so already.")
        return
    console.pairs(
        {
            "memory": f"{url}, generation {summary.generation}",
            f"facts {done}": f"{summary.facts:,} in {duration(summary.seconds)}",
            "quarantined": summary.quarantined,
        }
    )
    if summary.quarantine:
        console.write(f"Rejected rows, with file, line and reason: {url.rstrip('/')}/{summary.quarantine}")


if __name__ == "__main__":
    main(command)
