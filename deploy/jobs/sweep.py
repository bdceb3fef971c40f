"""`hmn sweep`: superseded generations out of a memory."""

from __future__ import annotations

import click

from deploy.console import Console, size
from deploy.entry import main
from deploy.options import examples, json_option

__all__ = ["command"]

_DAY_S = 24 * 3600.0


@click.command(
    "sweep",
    short_help="Delete generations that nobody needs.",
    epilog=examples(
        "hmn sweep memories/geonames --dry-run", "hmn sweep memories/geonames --keep-last 5 --keep-days 30"
    ),
)
@click.argument("url", metavar="URL")
@click.option("--keep-last", type=click.IntRange(min=1), default=1, show_default=True, help="Newest ones to keep.")
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Keep those superseded less than so many days ago: somebody may still read them.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@json_option
@click.pass_obj
def command(console: Console, url: str, keep_last: int, keep_days: float, dry_run: bool) -> None:
    """Delete superseded generations of the memory at URL, and the files that only they need.

    The current generation stays, and so does everything that a tag or the checkpoint of a run holds, and what an open
    memory reads: a process that died counts for another quarter of an hour.
    """
    from memory_store.upkeep import sweep

    report = sweep(url, keep_last=keep_last, keep_s=keep_days * _DAY_S, dry_run=dry_run)
    count, would = len(report.generations), "would be " if dry_run else ""
    names = ", ".join(map(str, report.generations)) or "none"

    def show() -> None:
        console.write(
            f"{url}: {count} generation{'s'[: count != 1]} {would}deleted ({names}); {len(report.files)} files, "
            f"{size(report.bytes)}"
        )
        for generation, pins in report.pinned.items():
            console.write(f"generation {generation} stays: pinned by {', '.join(pins)}")
        for generation, readers in report.read.items():
            console.write(f"generation {generation} stays: {'; '.join(readers)} read{'s'[: len(readers) == 1]} it")

    console.result({"memory": url, "dry_run": dry_run, **vars(report)}, show)


if __name__ == "__main__":
    main(command)
