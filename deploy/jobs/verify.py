"""`hmn verify`: reads every byte of a memory and says what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.console import Console, size
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from memory_store.upkeep import VerifyReport

__all__ = ["command"]


@click.command(
    "verify",
    short_help="Read every byte of a memory and check it.",
    epilog=examples("hmn verify memories/geonames", "hmn verify memories/geonames --current"),
)
@click.argument("url", metavar="URL")
@click.option("--current", is_flag=True, help="The current generation only.")
@json_option
@click.pass_obj
def command(console: Console, url: str, current: bool) -> None:
    """Read every byte of the memory at URL: checksums, ids, vectors, and what must hold between them.

    Exit status 1 if anything is wrong.
    """
    from memory_store.upkeep import verify_memory

    report = verify_memory(
        url, current_only=current, progress=lambda done, total: console.progress("verify", done, total, unit="bytes")
    )
    console.result(
        {"ok": report.ok, "problems": report.problems, **vars(report)},
        lambda: _show(console, report),
    )
    for problem in report.problems:
        console.say(f"error: {problem}")
    if not report.ok:
        click.get_current_context().exit(1)


def _show(console: Console, report: VerifyReport) -> None:
    for check in report.generations:
        count = len(check.problems)
        state = "sound" if not count else f"{count} problem{'s' if count > 1 else ''}"
        console.write(f"generation {check.generation}: {check.facts:,} facts, {state}")
    console.write(f"{report.url}: {report.parts} parts, {size(report.bytes)} read")


if __name__ == "__main__":
    main(command)
