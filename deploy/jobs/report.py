"""`hmn report`: a run as a page."""

import webbrowser

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

__all__ = ["command"]


@click.command(
    "report",
    short_help="A run as a page: curves, accuracy, time, examples.",
    epilog=examples("hmn report runs/geonames", "hmn report runs/geonames --open"),
)
@click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--open", "show", is_flag=True, help="Show it in the browser.")
@json_option
@click.pass_obj
def command(console: Console, run_dir: str, show: bool) -> None:
    """Write RUN/report.html, one file that needs no network, and RUN/report.json with the data behind it.

    `hmn train` and `hmn evaluate` do the same when they end. A run that still trains, or that stopped on the way, is
    shown as far as it is.
    """
    from trainer.report.write import DATA, PAGE, write_report

    page = write_report(run_dir)
    console.result({"report": page, "data": page.with_name(DATA)}, lambda: console.write(f"Written: {run_dir}/{PAGE}"))
    if show:
        webbrowser.open(page.resolve().as_uri())


if __name__ == "__main__":
    main(command)
