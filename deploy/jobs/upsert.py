"""`hmn upsert`: fresh facts into a memory that serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import click

from deploy.console import Console, duration
from deploy.entry import main
from deploy.options import examples, json_option, memory_option

if TYPE_CHECKING:
    from pipeline.upsert import WriteSummary

__all__ = ["command", "show_write"]

Result = TypeVar("Result")

_LOOK_EVERY_S = 0.2


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
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to wait for RUN, while it trains, to save the model that embedded the memory. [0]",
)
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
    wait_s: float,
    strict: bool,
    note: str | None,
) -> None:
    """Put the facts of every SOURCE into the memory as one generation: new ones beside, known ones replaced.

    SOURCE is what hmn ingest reads. A fact becomes what its triples say here; hmn ingest would add to it. Nothing else
    is written or embedded again, and searches go on.

    A run that trains embeds the memory anew every so many steps, and saves its model after some of them: between such
    a checkpoint and the next refresh the two agree, which is what --wait waits for.
    """
    from pipeline.upsert import upsert
    from trainer.refresh import FactEmbedder
    from trainer.run import load_run

    def write() -> WriteSummary:
        encoder = load_run(run_dir)[2]
        embedder = FactEmbedder(encoder, remember=0)  # it sees every fact once
        return upsert(sources, url, embedder, fingerprint=encoder.fingerprint(), names=names, strict=strict, note=note)

    summary = _when_they_agree(write, url, run_dir, wait_s)
    console.result({"memory": url, **vars(summary)}, lambda: show_write(console, url, summary, "upserted"))


def _when_they_agree(write: Callable[[], Result], url: str, run_dir: str, wait_s: float) -> Result:
    """What `write` returns, tried when the newest checkpoint made the newest vectors; after wait_s in any case."""
    from memory_store.errors import GenerationConflict, VersionMismatch
    from memory_store.manifest import read_manifest
    from memory_store.storage import Storage
    from trainer.checkpoint import newest_checkpoint

    until_s = time.monotonic() + wait_s
    while time.monotonic() < until_s:
        checkpoint = newest_checkpoint(Storage(run_dir))
        if checkpoint is not None and checkpoint.fingerprint == read_manifest(Storage(url)).encoder:
            with suppress(GenerationConflict, VersionMismatch):  # the run went on meanwhile
                return write()
        time.sleep(_LOOK_EVERY_S)
    return write()


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
