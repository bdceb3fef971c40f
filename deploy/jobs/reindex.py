"""`hmn reindex`: all vectors of a memory anew while it serves, and an index tried out on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deploy.console import Console, duration, size
from deploy.entry import main
from deploy.options import examples, json_option, memory_option

if TYPE_CHECKING:
    from memory_store.trial import Trial

__all__ = ["command"]


@click.command(
    "reindex",
    short_help="New vectors or another index for a memory that serves.",
    epilog=examples(
        "hmn reindex --memory memories/geonames --model runs/better",
        "hmn reindex --memory memories/geonames --index exact --shards 4",
    ),
)
@memory_option
@click.option("--model", "run_dir", metavar="RUN", help="Embed every fact with the model of this run.")
@click.option("--index", metavar="NAME", help="Build this index (see hmn indexes) and measure its recall.")
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True, help="For --index: shards.")
@click.option(
    "--least-recall",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="For --index: fail when its recall@10 on sampled vectors is lower.",
)
@json_option
@click.pass_obj
def command(
    console: Console, url: str, run_dir: str | None, index: str | None, shards: int, least_recall: float
) -> None:
    """Embed every fact of the memory with another model while it serves, and try an index on it before serving with it.

    Facts that are upserted meanwhile are embedded too; a re-index that was killed goes on where it was; a second one at
    the same time is refused. An index and shards are chosen by who opens the memory: nothing of them is stored.
    """
    from memory_store.reembed import reembed
    from memory_store.storage import Storage

    if run_dir is None and index is None:
        raise click.UsageError("expected --model, --index or both: there is nothing to do")
    data: dict[str, Any] = {"memory": url}
    trial: Trial | None = None
    if run_dir is not None:
        from deploy.jobs.embed import make_embedder
        from trainer.run import load_run

        manifest = reembed(
            Storage(url),
            make_embedder(run_dir),
            fingerprint=load_run(run_dir)[2].fingerprint(),
            progress=console.progress,
        )
        data |= {"generation": manifest.generation, "facts": manifest.fact_count, "encoder": manifest.encoder}
    if index is not None:
        from memory_store.trial import try_index

        trial = try_index(url, index=index, shards=shards, least_recall=least_recall)
        data |= vars(trial)
    console.result(data, lambda: _show(console, data, trial))


def _show(console: Console, data: dict[str, Any], trial: Trial | None) -> None:
    rows: dict[str, object] = {"memory": f"{data['memory']}, generation {data['generation']}"}
    if "encoder" in data:
        rows |= {"facts": data["facts"], "embedded by": data["encoder"]}
    if trial is not None:
        rows |= {
            "index": f"{trial.index} on {trial.shards} shard{'s'[: trial.shards > 1]}",
            "built in": f"{duration(trial.build_s)}, {size(trial.bytes)}",
            "recall@10": round(trial.recall, 4),
        }
    console.pairs(rows)


if __name__ == "__main__":
    main(command)
