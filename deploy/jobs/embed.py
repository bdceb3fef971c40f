"""`hmn embed`: every fact of a memory as a vector of a trained model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from deploy.console import Console, duration, size
from deploy.entry import main
from deploy.options import backend_option, examples, json_option, memory_option, workers_option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.embed import Encoder

__all__ = ["RunEmbedder", "command", "make_embedder"]


@click.command(
    "embed",
    short_help="A memory's facts into vectors of a trained model.",
    epilog=examples(
        "hmn embed --memory memories/geonames --model runs/geonames",
        "hmn embed --memory s3://bucket/memory --model runs/geonames --backend ray --dtype float16",
    ),
)
@memory_option
@click.option("--model", "run_dir", metavar="RUN", required=True, help="The run whose newest checkpoint encodes.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of the stored vectors; default: as the run has it.",
)
@backend_option
@workers_option
@json_option
@click.pass_obj
def command(console: Console, url: str, run_dir: str, dtype: str | None, backend: str, workers: int | None) -> None:
    """Embed every fact of the memory with the model of RUN and commit the vectors as the next generation.

    A run that was killed finishes the missing parts only; a memory that this model embedded already stays as it is, and
    facts that it embedded in an earlier generation, in the same words, are not embedded again.
    """
    from memory_store.reembed_claim import refuse_beside_another
    from memory_store.storage import Storage
    from pipeline.embed import embed
    from trainer.run import load_run

    refuse_beside_another(Storage(url))  # it would commit over these vectors, or these over its own
    config, _, encoder = load_run(run_dir)
    summary = embed(
        url,
        partial(make_embedder, run_dir),
        fingerprint=encoder.fingerprint(),
        dim=encoder.dim,
        dtype=dtype or config.memory.dtype,
        backend=backend,
        workers=workers,
        progress=console.progress,
    )

    def show() -> None:
        if not summary.committed:
            console.write(f"Nothing to do: generation {summary.generation} of {url} is embedded by this model already.")
            return
        console.pairs(
            {
                "memory": f"{url}, generation {summary.generation}",
                "facts": f"{summary.facts:,} in {duration(summary.seconds)} ({summary.facts_per_second:,.0f} a second)",
                "embedded": f"{summary.computed:,} facts; {summary.reused:,} as an earlier generation has them",
                "parts": f"{summary.embedded_parts} written now, of {summary.parts}",
                "dimension": encoder.dim,
                "size": size(summary.bytes),
            }
        )

    console.result({"memory": url, "facts_per_second": summary.facts_per_second, **vars(summary)}, show)


def make_embedder(run_dir: str) -> Encoder:
    """The fact encoder of a run; each worker makes its own, and keeps the memory that it needs for each part."""
    from trainer.process import keep_freed_memory
    from trainer.refresh import FactEmbedder
    from trainer.run import load_run

    keep_freed_memory()
    return FactEmbedder(load_run(run_dir)[2], remember=0)  # it sees every part once


class RunEmbedder:
    """The fact encoder of a run, made by each process at its first facts: what is sent to another one is the name."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._encoder: Encoder | None = None

    def __call__(self, facts: pa.Table) -> NDArray[np.float32]:
        self._encoder = self._encoder or make_embedder(self._run_dir)
        return self._encoder(facts)


if __name__ == "__main__":
    main(command)
