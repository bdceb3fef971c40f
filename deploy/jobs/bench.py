"""`hmn bench`: every published figure comes from one of these commands."""

from difflib import get_close_matches
from importlib import import_module

import click

from deploy.entry import main
from deploy.options import examples

__all__ = ["command"]

BENCHES = {
    "ann": "Recall against queries per second of every index, beside faiss, hnswlib, usearch and svs.",
    "distributed": "Shards on Ray against one process, and against a plain faiss index per Ray actor.",
    "exactness": "The exact index against float64 brute force.",
    "kb": "Three million real triples, from the raw file to the first answer.",
    "kills": "kill -9 of ingest, embed and train at random instants, and their reruns.",
    "live": "Upserts, compaction and re-indexing while searches go on, beside a rebuild.",
    "paper": "The experiments of Chandar et al. (2016): full softmax, K-MIPS, approximate search.",
    "recovery": "kill -9 of shards: time until they answer again, and what replicas spare callers.",
    "scale": "What every stage costs against the number of facts and of shards.",
    "search": "Search time against faiss, in-process and on Ray.",
    "serve": "Questions per second and latency over HTTP, one at a time and many at once.",
    "simplequestions": "Accuracy on SimpleQuestions, with training time and peak memory.",
    "step": "A training step with K-MIPS attention against the full softmax.",
}


class _Benches(click.Group):
    """Loads a benchmark when it is asked for: they import torch and faiss."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHES:
            return None
        found: click.Command = import_module(f"deploy.bench.{cmd_name}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in BENCHES and not args[0].startswith("-"):
            close = get_close_matches(args[0], BENCHES, n=1)
            ctx.fail(f"No such benchmark {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benchmarks"):
            formatter.write_dl(list(BENCHES.items()))


@click.command(
    "bench",
    short_help="Measure what the README states.",
    cls=_Benches,
    epilog=examples("hmn bench search", "hmn bench step --json", "hmn bench exactness --full"),
)
def command() -> None:
    """Measure on this machine what the README states."""


if __name__ == "__main__":
    main(command)
