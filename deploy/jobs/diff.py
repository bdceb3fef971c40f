"""`hmn diff`: what changed between two generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from memory_store.history import GenerationDiff

__all__ = ["command"]


@click.command(
    "diff",
    short_help="What changed between two generations.",
    epilog=examples("hmn diff memories/geonames 3 5", "hmn diff memories/geonames 3 5 --ids 100 --json"),
)
@click.argument("url", metavar="URL")
@click.argument("before", metavar="BEFORE", type=click.IntRange(min=1))
@click.argument("after", metavar="AFTER", type=click.IntRange(min=1))
@click.option("--ids", type=click.IntRange(min=0), default=5, show_default=True, help="Fact ids to show of each kind.")
@json_option
@click.pass_obj
def command(console: Console, url: str, before: int, after: int, ids: int) -> None:
    """Compare two generations of the memory at URL: facts added, removed and changed.

    Reads only the parts that they do not share.
    """
    from memory_store.history import diff_generations
    from memory_store.storage import Storage

    found = diff_generations(Storage(url), before, after)
    kinds = {"added": found.added, "removed": found.removed, "changed": found.changed}
    data = {
        "memory": url,
        "before": before,
        "after": after,
        "facts_before": found.facts_before,
        "facts_after": found.facts_after,
        "embedded_anew": found.embedded_anew,
        "encoders": list(found.encoders),
        **{name: {"count": len(some), "fact_ids": some[:ids].tolist()} for name, some in kinds.items()},
    }
    console.result(data, lambda: _show(console, found, ids))


def _show(console: Console, found: GenerationDiff, ids: int) -> None:
    console.write(
        f"generation {found.before}: {found.facts_before:,} facts; {found.after}: {found.facts_after:,} facts"
    )
    rows = [
        (name, len(some), ", ".join(map(str, some[:ids].tolist())) + (", ..." if len(some) > ids else ""))
        for name, some in (("added", found.added), ("removed", found.removed), ("changed", found.changed))
    ]
    console.table(("facts", "count", "fact ids"), rows)
    if found.embedded_anew:
        console.write(f"All vectors are new: encoder {found.encoders[0]} before, {found.encoders[1]} after.")


if __name__ == "__main__":
    main(command)
