"""`hmn reshard`: the rows of a memory divided among another number of shards while it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deploy.console import Console, size
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from memory_store.stats import MemoryStats

__all__ = ["command"]


@click.command(
    "reshard",
    short_help="Another number of shards for a memory that serves.",
    epilog=examples(
        "hmn reshard geonames --shards 4",
        "RAY_ADDRESS=10.0.0.1:6379 hmn reshard /data/geonames --shards 4 --json",
    ),
)
@click.argument("memory", metavar="MEMORY")
@click.option("--shards", type=click.IntRange(min=1), required=True, help="How many; one per processor at most.")
@json_option
@click.pass_obj
def command(console: Console, memory: str, shards: int) -> None:
    """Divide MEMORY anew: a name that jobs share it by in the Ray cluster, or its URL, for every name it is shared by.

    Use it after a node was added. The new shards are started beside those that serve, on all nodes in turn, and
    verified; then every job goes on with them, in one step and without a failed search. For a URL that nobody shares it
    tries the division out and says what each shard holds: whoever opens it chooses the number of shards.
    """
    names = _names_of(memory)
    if names:
        divided = _divide_anew(names, shards)
    else:
        from memory_store.opening import open_memory

        with open_memory(memory, shards) as tried:
            divided = [_division(None, tried.stats())]
    data: dict[str, Any] = {"memory": memory, "shards": shards, "names": names, "divided": divided}
    console.result(data, lambda: _show(console, data))


def _divide_anew(names: list[str], shards: int) -> list[dict[str, Any]]:
    """One name after the other; an error says which were done before it."""
    from memory_store.errors import HmnError, ReindexFailed
    from memory_store.opening import open_shared

    done: list[dict[str, Any]] = []
    for name in names:
        try:
            with open_shared(name) as shared:
                shared.reindex(shards=shards)
                done.append(_division(name, shared.stats()))
        except HmnError as error:
            if not done:
                raise
            before = ", ".join(one["name"] for one in done)
            raise ReindexFailed(f"{name}: {error}; divided among {shards} already: {before}") from error
    return done


def _division(name: str | None, stats: MemoryStats) -> dict[str, Any]:
    return {
        "name": name,
        "generation": stats.generation,
        "rows": [line.rows for line in stats.shards],
        "bytes": [line.bytes for line in stats.shards],
    }


def _names_of(memory: str) -> list[str]:
    """What a name or a URL is shared by in the cluster; nothing where no cluster runs, unless one is asked for."""
    import os

    from memory_store.errors import ConfigError, MemoryNotFound, RayUnavailable
    from memory_store.manifest import read_manifest
    from memory_store.storage import Storage

    storage = Storage(memory)
    try:
        from memory_store.ray_session import ensure_ray
        from memory_store.shared import shared_memories

        ensure_ray(join="auto")
        shared = shared_memories()
    except RayUnavailable:
        if os.environ.get("RAY_ADDRESS"):
            raise
        shared = {}
    if memory in shared:
        return [memory]
    names = [name for name, edition in shared.items() if edition.url == storage.url]
    if not names:
        try:
            read_manifest(storage)
        except MemoryNotFound:
            known = ", ".join(sorted(shared)) or "none"
            raise ConfigError(
                f"expected the URL of a memory or the name of one that is shared in the cluster ({known}), found "
                f"{storage.shown if '/' in memory else memory}; see `hmn cluster status`"
            ) from None
    return names


def _show(console: Console, data: dict[str, Any]) -> None:
    shards = f"{data['shards']} shard{'s'[: data['shards'] > 1]}"
    if not data["names"]:
        console.write(
            f"No job shares {data['memory']} under a name, so nothing was changed; opened with {shards} "
            "(open_memory, memory.shards, hmn serve --shards) it is divided so:"
        )
    for one in data["divided"]:
        if one["name"] is not None:
            console.write(f"{one['name']}: serves generation {one['generation']} from {shards} now")
        console.table(
            ("shard", "rows", "size"),
            [
                (number, rows, size(held))
                for number, (rows, held) in enumerate(zip(one["rows"], one["bytes"], strict=True))
            ],
        )


if __name__ == "__main__":
    main(command)
