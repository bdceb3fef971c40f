"""`hmn delete`: facts out of a memory that serves."""

from __future__ import annotations

import click

from deploy.console import Console
from deploy.entry import main
from deploy.jobs.upsert import show_write
from deploy.options import examples, json_option, memory_option

__all__ = ["command"]


@click.command(
    "delete",
    short_help="Facts out of a memory that serves.",
    epilog=examples(
        "hmn delete --memory memories/geonames --fact 1234567890123456789",
        "hmn delete withdrawn.tsv --memory memories/geonames --note 'ticket 4711'",
    ),
)
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@memory_option
@click.option("--fact", "fact_ids", type=int, multiple=True, metavar="ID", help="Delete this fact; repeatable.")
@click.option("--strict", is_flag=True, help="Stop at the first bad row instead of putting it into quarantine.")
@click.option("--note", metavar="TEXT", help="For the history that hmn inspect shows; default: how many facts.")
@json_option
@click.pass_obj
def command(
    console: Console, sources: tuple[str, ...], url: str, fact_ids: tuple[int, ...], strict: bool, note: str | None
) -> None:
    """Delete facts by id, and the facts that the triples of every SOURCE belong to, as one generation.

    If the memory lacks one of them, nothing is deleted. Older generations keep them until they are swept.
    """
    from pipeline.upsert import delete

    summary = delete(sources, url, fact_ids=fact_ids, strict=strict, note=note)
    console.result({"memory": url, **vars(summary)}, lambda: show_write(console, url, summary, "deleted"))


if __name__ == "__main__":
    main(command)
