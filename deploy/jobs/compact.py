"""`hmn compact`: what was upserted and deleted, merged into the parts of a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.console import Console, duration, size
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from memory_store.compaction import CompactionSummary

__all__ = ["command"]


@click.command(
    "compact",
    short_help="Merge upserts and deletes into the memory.",
    epilog=examples("hmn compact memories/geonames", "hmn compact s3://bucket/memory --if-due"),
)
@click.argument("url", metavar="URL")
@click.option(
    "--dead-share",
    type=click.FloatRange(0.0, 1.0),
    default=0.2,
    show_default=True,
    help="Rewrite a part when more of its rows than this are dead; 0 drops every dead row.",
)
@click.option("--if-due", is_flag=True, help="Only if many parts or rows are fresh or dead; for a schedule.")
@json_option
@click.pass_obj
def command(console: Console, url: str, dead_share: float, if_due: bool) -> None:
    """Merge fresh rows and tombstones into new parts for the main index, as one generation with the same facts.

    Rewrites what changed and keeps every other part; searches and writes go on meanwhile. A compaction that was killed
    goes on where it was.
    """
    from memory_store.compaction import CompactionPolicy, compact
    from memory_store.storage import Storage

    policy = CompactionPolicy(most_dead_share=dead_share)
    summary = compact(Storage(url), policy=policy, only_if_due=if_due, progress=console.progress)
    console.result({"memory": url, **vars(summary)}, lambda: _show(console, url, summary))


def _show(console: Console, url: str, summary: CompactionSummary) -> None:
    if not summary.committed:
        console.write(f"Nothing to do: generation {summary.generation} of {url} is compact enough.")
        return
    console.pairs(
        {
            "memory": f"{url}, generation {summary.generation}",
            "parts": f"{summary.parts} rewritten; {summary.all_parts} now",
            "rows": f"{summary.rows:,} copied, {summary.dropped_rows:,} dead ones dropped",
            "written": f"{size(summary.bytes)} in {duration(summary.seconds)}",
        }
    )


if __name__ == "__main__":
    main(command)
