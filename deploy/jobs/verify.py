"""`hmn verify`: reads every byte of a memory and says what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    epilog=examples(
        "hmn verify memories/geonames",
        "hmn verify memories/geonames --current",
        "hmn verify memories/geonames --repair --copy /backup/geonames",
    ),
)
@click.argument("url", metavar="URL")
@click.option("--current", is_flag=True, help="The current generation only.")
@click.option("--repair", is_flag=True, help="First restore damaged files from whatever still holds their bytes.")
@click.option("--copy", "copies", multiple=True, metavar="URL", help="For --repair: another place that holds a copy.")
@json_option
@click.pass_obj
def command(console: Console, url: str, current: bool, repair: bool, copies: tuple[str, ...]) -> None:
    """Read every byte of the memory at URL: checksums, ids, vectors, and what must hold between them.

    Of a remote memory it reads what is there, and not what this machine's cache holds of it; damaged copies in the
    cache are dropped. With --repair, damaged and missing files are restored first, from this machine's cache of a
    remote memory, from files of the same content, and from copies. Exit status 1 if anything is wrong, or still wrong.
    """
    from memory_store.upkeep import verify_memory

    if copies and not repair:
        raise click.UsageError("expected --repair with --copy: without it nothing is written")
    repaired: dict[str, Any] = {}
    if repair:
        from memory_store.repair import repair_memory

        done = repair_memory(
            url,
            copies=copies,
            progress=lambda done, total: console.progress("repair", done, total, unit="bytes"),
        )
        for file in done.restored:
            console.say(f"restored {file.path} from {file.source}")
        for path in done.dropped:
            console.say(f"dropped {path}: damaged; it is built again when the memory is opened")
        for lost in done.lost:
            console.say(f"not restored: {lost}")
        repaired = {"restored": [vars(file) for file in done.restored], "dropped": done.dropped, "lost": done.lost}
    report = verify_memory(
        url, current_only=current, progress=lambda done, total: console.progress("verify", done, total, unit="bytes")
    )
    console.result(
        {"ok": report.ok, "problems": report.problems, **vars(report), **repaired},
        lambda: _show(console, report),
    )
    for path in report.dropped_copies:
        console.say(f"dropped this machine's cached copy of {path}: damaged; it is fetched again when it is read")
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
