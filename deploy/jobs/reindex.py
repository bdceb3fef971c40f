"""`hmn reindex`: all vectors of a memory anew while it serves, and an index tried out on it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from deploy.console import Console, duration, size
from deploy.entry import main
from deploy.options import backend_option, examples, json_option, memory_option, workers_option

if TYPE_CHECKING:
    from memory_store.manifest import Manifest
    from memory_store.memory import Memory
    from memory_store.reembed import Encode
    from memory_store.storage import Storage
    from memory_store.trial import Trial

__all__ = ["command"]


@click.command(
    "reindex",
    short_help="New vectors or another index for a memory that serves.",
    epilog=examples(
        "hmn reindex --memory memories/geonames --model runs/better",
        "hmn reindex --memory memories/geonames --index exact --shards 4",
        "hmn reindex --memory /data/geonames --model /data/runs/better --name geonames",
    ),
)
@memory_option
@click.option("--model", "run_dir", metavar="RUN", help="Embed every fact with the model of this run.")
@click.option("--index", metavar="NAME", help="Build this index (see hmn indexes) and measure its recall.")
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    show_default="1; with --name, as many as it has",
    help="For --index: shards.",
)
@click.option("--name", metavar="NAME", help="Have the memory that jobs share by this name serve the result.")
@click.option(
    "--least-recall",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="For --index: fail when its recall@10 on sampled vectors is lower.",
)
@backend_option
@workers_option
@json_option
@click.pass_obj
def command(
    console: Console,
    url: str,
    run_dir: str | None,
    index: str | None,
    shards: int | None,
    least_recall: float,
    name: str | None,
    backend: str,
    workers: int | None,
) -> None:
    """Embed every fact of the memory with another model while it serves, and try an index on it before serving with it.

    Facts that are upserted meanwhile are embedded too; a re-index that was killed goes on where it was; a second one at
    the same time is refused. An index and shards are chosen by who opens the memory: nothing of them is stored. With
    --name the shards that jobs of the Ray cluster share are replaced in one step, while those jobs search on; each
    takes new vectors over at its next refresh, for its model must fit them.
    """
    from memory_store.manifest import read_manifest
    from memory_store.reembed import Reembedding
    from memory_store.storage import Storage

    if run_dir is None and index is None:
        raise click.UsageError("expected --model, --index or both: there is nothing to do; for shards see hmn reshard")
    data: dict[str, Any] = {"memory": url}
    trial: Trial | None = None

    def tried(proposed: Manifest | None) -> Trial | None:
        if index is None:
            return None
        from memory_store.trial import try_index

        at = None if proposed is None else proposed.generation
        return try_index(url, index=index, shards=shards or 1, least_recall=least_recall, generation=at)

    with ExitStack() as closing:
        shared = None if name is None else closing.enter_context(_open_shared(name, Storage(url)))
        encode: Encode | None = None
        fingerprint: str | None = None
        if run_dir is not None:
            from deploy.jobs.embed import RunEmbedder
            from trainer.run import load_run

            encode, fingerprint = RunEmbedder(run_dir), load_run(run_dir)[2].fingerprint()
        before = read_manifest(Storage(url)).encoder
        if shared is not None:
            shared.reindex(
                encode,
                index,
                shards,
                fingerprint=fingerprint,
                least_recall=least_recall,
                backend=backend,
                workers=workers,
                progress=console.progress,
            )
            stats = shared.stats()
            data |= {"name": name, "generation": stats.generation, "rows": [line.rows for line in stats.shards]}
            data |= {"index": stats.shards[0].index, "shards": len(stats.shards)}
        elif encode is not None:
            with Reembedding(
                Storage(url),
                encode,
                fingerprint=fingerprint,
                backend=backend,
                workers=workers,
                progress=console.progress,
            ) as embedding:
                proposed = embedding.embed()
                trial = tried(proposed)
                embedding.commit()
        else:
            trial = tried(None)
        manifest = read_manifest(Storage(url))
        data |= {} if trial is None else vars(trial)
        data["generation"] = manifest.generation
        if encode is not None:
            data |= {"facts": manifest.fact_count, "encoder": manifest.encoder, "embedded": manifest.encoder != before}
    console.result(data, lambda: _show(console, data, trial))


def _open_shared(name: str, storage: Storage) -> Memory:
    from memory_store.errors import ConfigError
    from memory_store.opening import open_shared

    memory = open_shared(name)
    if memory.url != storage.url:
        memory.close()
        raise ConfigError(
            f"expected --memory to be what {name} shares, found {storage.shown}; see `hmn cluster status`"
        )
    return memory


def _show(console: Console, data: dict[str, Any], trial: Trial | None) -> None:
    rows: dict[str, object] = {"memory": f"{data['memory']}, generation {data['generation']}"}
    if "encoder" in data:
        nothing = "" if data["embedded"] else " already; nothing to do"
        rows |= {"facts": data["facts"], "embedded by": f"{data['encoder']}{nothing}"}
    if trial is not None:
        rows |= {
            "index": f"{trial.index} on {trial.shards} shard{'s'[: trial.shards > 1]}",
            "built in": f"{duration(trial.build_s)}, {size(trial.bytes)}",
            "recall@10": round(trial.recall, 4),
        }
    if "name" in data:
        rows["serves as"] = f"{data['name']}, {data['index']} on {data['shards']} shard{'s'[: data['shards'] > 1]}"
    console.pairs(rows)


if __name__ == "__main__":
    main(command)
