"""`hmn rollback`: the content of an older generation once more, as a new one."""

from __future__ import annotations

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

__all__ = ["command"]


@click.command(
    "rollback",
    short_help="Back to the content of an older generation.",
    epilog=examples("hmn rollback memories/geonames 3", "hmn rollback memories/geonames 3 --note 'bad feed of Monday'"),
)
@click.argument("url", metavar="URL")
@click.argument("generation", metavar="GENERATION", type=click.IntRange(min=1))
@click.option("--note", metavar="TEXT", help="For the history that hmn inspect shows; default: the generation.")
@json_option
@click.pass_obj
def command(console: Console, url: str, generation: int, note: str | None) -> None:
    """Commit a new generation of the memory at URL with the content of GENERATION.

    Nothing is lost: the generations between stay until they are swept, and rolling back can be rolled back.
    """
    from memory_store.history import rollback
    from memory_store.manifest import current_generation
    from memory_store.storage import Storage

    storage = Storage(url)
    before = current_generation(storage)
    new = rollback(storage, generation, note=note)

    def show() -> None:
        if new.generation == before:
            console.write(f"Nothing to do: generation {before} of {url} holds what generation {generation} holds.")
        else:
            console.write(f"{url}: generation {new.generation} holds the {new.fact_count:,} facts of {generation}")

    data = {"memory": url, "generation": new.generation, "committed": new.generation != before, "facts": new.fact_count}
    console.result(data, show)


if __name__ == "__main__":
    main(command)
