"""`hmn plan`: memory, disk, threads, shards and a valid nlist, before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from deploy.console import Console, duration, size
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from deploy.bench.laws import Prediction
    from deploy.plan import Machine, Plan

__all__ = ["command"]


@click.command(
    "plan",
    short_help="What a memory will need, before it is built.",
    epilog=examples(
        "hmn plan --facts 1000000 --dim 256",
        "hmn plan --facts 5e6 --dim 128 --measured scale.jsonl",
        "hmn plan --facts 1e9 --dim 128 --dtype float16 --cores 64 --memory-gib 512 --disk-gib 4000",
    ),
)
@click.option("--facts", type=float, required=True, metavar="N", help="How many facts; 1e6 is fine.")
@click.option("--dim", type=click.IntRange(min=1), required=True, metavar="D", help="Dimension of the vectors.")
@click.option("--shards", type=click.IntRange(min=1), help="Default: what is advised.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", show_default=True)
@click.option("--index", default="exact", show_default=True, help="As `hmn indexes` lists them.")
@click.option("--feature-bits", type=click.IntRange(4, 31), default=19, show_default=True, help="Of the model.")
@click.option("--cores", type=click.IntRange(min=1), help="Plan for another machine; default: this one.")
@click.option("--memory-gib", type=click.FloatRange(min=0, min_open=True), help="Its free memory; default: this one's.")
@click.option("--disk-gib", type=click.FloatRange(min=0, min_open=True), help="Its free disk; default: this one's.")
@click.option(
    "--measured",
    type=click.Path(exists=True, dir_okay=False),
    help="What `hmn bench scale` measured here: say the time and the memory of each step too.",
)
@json_option
@click.pass_obj
def command(
    console: Console,
    facts: float,
    dim: int,
    shards: int | None,
    dtype: Literal["float32", "float16", "bfloat16"],
    index: str,
    feature_bits: int,
    cores: int | None,
    memory_gib: float | None,
    disk_gib: float | None,
    measured: str | None,
) -> None:
    """Say what a memory of N facts with D dimensions needs, and whether this machine has it.

    Exit status 1 if it will not fit.
    """
    from deploy import plan as planning
    from deploy.checks import usable_cores, usable_memory_bytes
    from memory_store.errors import ConfigError

    if not 1 <= facts < 2**63 or facts != int(facts):
        raise ConfigError(f"expected --facts to be a whole number of at least 1, found {facts:g}")
    machine = planning.Machine(
        cores=cores or usable_cores(),
        memory_bytes=usable_memory_bytes()[0] if memory_gib is None else int(memory_gib * planning.GIB),
        disk_bytes=shutil.disk_usage(Path.cwd()).free if disk_gib is None else int(disk_gib * planning.GIB),
    )
    plan = planning.plan_memory(
        facts=int(facts),
        dim=dim,
        machine=machine,
        shards=shards,
        dtype=dtype,
        index=index,
        feature_bits=feature_bits,
    )
    steps: dict[str, dict[str, Prediction]] = {}
    if measured is not None:
        from deploy.bench.prediction import predicted
        from deploy.bench.scale_records import read_records

        records = read_records(Path(measured))
        steps = {
            value: predicted(records, int(facts), dim, dtype, value, plan.shards)
            for value in ("wall_s", "cpu_s", "peak_bytes")
        }

    def show() -> None:
        _show(console, plan, machine)
        if steps:
            console.write()
            console.table(
                ("step", "time", "from", "to", "of processors", "memory"),
                [
                    (
                        step,
                        *map(_in_time, (one.cost, one.least, one.most)),
                        _in_time(steps["cpu_s"][step].cost) if step in steps["cpu_s"] else "",
                        size(round(steps["peak_bytes"][step].cost)) if step in steps["peak_bytes"] else "",
                    )
                    for step, one in steps["wall_s"].items()
                ],
            )

    costs = {value: {step: one.cost for step, one in found.items()} for value, found in steps.items()}
    ranges = {value: {step: (one.least, one.most) for step, one in found.items()} for value, found in steps.items()}
    console.result(
        {
            "fits": not plan.problems,
            "machine": machine,
            **vars(plan),
            "seconds": costs.get("wall_s", {}),
            "steps": costs,
            "ranges": ranges,
        },
        show,
    )
    for problem in plan.problems:
        console.say(f"error: {problem}")
    if plan.problems:
        click.get_current_context().exit(1)


def _in_time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _show(console: Console, plan: Plan, machine: Machine) -> None:
    shard = plan.shard
    console.pairs(
        {
            "facts": f"{plan.facts:,} x {plan.dim} {plan.dtype}",
            "shards": f"{plan.shards} (advised here: {plan.shards_advised}), {plan.threads_per_shard} threads each",
            "rows per shard": shard.rows,
            "  vectors, mapped from disk": size(shard.mapped_bytes),
            f"  index {plan.index}, at most": size(shard.index_bytes),
            "  ids": size(shard.ids_bytes),
            "  while a generation loads": size(shard.reload_bytes + 2 * shard.mapped_bytes),
            **({"  GPU, while a generation loads": size(shard.gpu_bytes)} if shard.gpu_bytes else {}),
            "memory, all shards": size(plan.memory_bytes),
            "memory, embedding": f"{size(plan.embed_worker_bytes)} per worker",
            "memory, first opening": f"{size(plan.opening_bytes)} beside the vectors",
            "memory, re-index": f"{size(plan.reindex_bytes)} beside the vectors",
            "memory, training": size(plan.train_bytes),
            "disk, facts": f"about {size(plan.facts_disk_bytes)}; entities with many names take up to 5 times that",
            "disk, vectors": f"{size(plan.vectors_disk_bytes)} per generation",
            "disk, in all": f"{size(plan.disk_bytes)} while two generations are kept",
            "nlist": f"{plan.nlist} for an ivf index over one shard",
            "fits here": f"{'no' if plan.problems else 'yes'}: {machine.cores} cores, "
            f"{size(machine.memory_bytes)} of memory and {size(machine.disk_bytes)} of disk free",
        }
    )


if __name__ == "__main__":
    main(command)
