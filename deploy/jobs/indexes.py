"""`hmn indexes`: every MIPS index that can be named."""

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

__all__ = ["command"]


@click.command(
    "indexes", short_help="The indexes that can be named.", epilog=examples("hmn indexes", "hmn indexes --json")
)
@json_option
@click.pass_obj
def command(console: Console) -> None:
    """List every index with its options; use it as `name` or `name?option=value&option=value`."""
    from memory_store.mips.registry import INDEXES

    known = [
        {
            "name": index.name,
            "argument": index.argument,
            "exact": index.exact,
            "summary": index.summary,
            "options": dict(index.options),
        }
        for index in INDEXES.values()
    ]

    def show() -> None:
        for index in INDEXES.values():
            argument = f":<{index.argument}>" if index.argument else ""
            console.write(f"{index.name}{argument}  ({'exact' if index.exact else 'approximate'})  {index.summary}")
            for option, meaning in index.options.items():
                console.write(f"    {option}: {meaning}")

    console.result({"indexes": known}, show)


if __name__ == "__main__":
    main(command)
