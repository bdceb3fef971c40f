"""`hmn tag`: a name for a generation, which keeps it."""

from __future__ import annotations

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

__all__ = ["command"]


@click.command(
    "tag",
    short_help="Name a generation, so that it stays.",
    epilog=examples("hmn tag memories/geonames release-1", "hmn tag memories/geonames before-cleanup --generation 7"),
)
@click.argument("url", metavar="URL")
@click.argument("name", metavar="NAME")
@click.option("--generation", type=click.IntRange(min=1), help="Default: the current one.")
@click.option("--remove", is_flag=True, help="Take the name away; the generation may then be swept.")
@json_option
@click.pass_obj
def command(console: Console, url: str, name: str, generation: int | None, remove: bool) -> None:
    """Name a generation of the memory at URL: no sweep takes it while it has a name. A name that exists moves.

    hmn inspect lists tags among the pins.
    """
    from memory_store.manifest import read_manifest
    from memory_store.storage import Storage
    from memory_store.upkeep import TAG_PREFIX, pin, pins, unpin

    storage = Storage(url)
    chosen = read_manifest(storage, generation).generation
    if remove:
        chosen = pins(storage).get(f"{TAG_PREFIX}{name}", 0)
        unpin(storage, f"{TAG_PREFIX}{name}")
        said = f"{name} names generation {chosen} no more" if chosen else f"Nothing to do: there is no tag {name}"
    else:
        pin(storage, f"{TAG_PREFIX}{name}", chosen)
        said = f"{name} names generation {chosen}"
    data = {"memory": url, "tag": name, "generation": chosen or None, "removed": remove}
    console.result(data, lambda: console.write(said))


if __name__ == "__main__":
    main(command)
