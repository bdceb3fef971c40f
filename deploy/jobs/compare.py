"""`hmn compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from trainer.report.compare import Comparison

__all__ = ["command"]


@click.command(
    "compare",
    short_help="Runs side by side: settings, curves, accuracy.",
    epilog=examples("hmn compare runs/k10 runs/k100", "hmn compare runs/* --split test --html k.html"),
)
@click.argument("run_dirs", metavar="RUN RUN...", type=click.Path(file_okay=False), nargs=-1, required=True)
@click.option(
    "--split", type=click.Choice(["train", "valid", "test"]), help="Default: what most runs were evaluated on."
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    default="compare.html",
    show_default=True,
    help="The page to write.",
)
@json_option
@click.pass_obj
def command(console: Console, run_dirs: tuple[str, ...], split: str | None, page: Path) -> None:
    """Compare runs: a table here, and a page with their curves on one another that needs no network.

    Accuracies are those of `hmn evaluate`, with 95 % intervals; runs that were not evaluated show their curves only.
    """
    from memory_store.storage import Storage
    from trainer.report.compare import compare_runs

    found = compare_runs(run_dirs, split)
    Storage(str(page.resolve().parent)).write_atomic(page.name, found.page().encode())
    console.result({**found.to_json(), "report": page}, lambda: _show(console, found, page))


def _show(console: Console, found: Comparison, page: Path) -> None:
    console.table(*found.table())
    console.write()
    if found.differences:
        console.table(*found.settings())
    else:
        console.write("All settings are the same.")
    console.write()
    console.write(f"Curves: {page}")


if __name__ == "__main__":
    main(command)
