"""`hmn bench simplequestions`: train on SimpleQuestions, evaluate, and say what it cost in time and memory."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from deploy.bench.process_memory import run_measured
from deploy.console import Console, duration, size
from deploy.options import examples, json_option
from memory_store.errors import HmnError, InputError

__all__ = ["CONFIGS", "command", "run_simplequestions_bench"]

CONFIGS = {
    "SQ": ("simplequestions.toml", "freebase-SQ.txt.gz"),
    "FB500K": ("simplequestions-fb500k.toml", "freebase-FB500K.txt.gz"),
}
"""Memory -> (the run's configuration in deploy/configs, the file of facts)."""


def run_simplequestions_bench(
    data: Path, *, memory: str = "SQ", backend: str = "ray", shards: int = 2, settings: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Ingest, train and evaluate the committed configuration in processes of their own.

    data: a folder with the files of the SimpleQuestions release, names.tsv.gz and the facts. settings: overrides as
    `hmn train --set` takes them. Raises InputError when a file is missing, HmnError when a command fails.
    """
    config, facts = CONFIGS[memory]
    for needed in (facts, "names.tsv.gz"):
        if not (data / needed).is_file():
            raise InputError(f"expected {needed} in {data}, found no such file; name the folder with --data")
    with tempfile.TemporaryDirectory(prefix="hmn-simplequestions-") as folder:
        run = Path(folder) / "run"
        overrides = [
            f"memory.backend={json.dumps(backend)}",
            f"memory.shards={shards}",
            f"data.questions={json.dumps(str(data))}",
            f"data.facts={json.dumps([str(data / facts)])}",
            f"data.names={json.dumps([str(data / 'names.tsv.gz')])}",
            *settings,
        ]
        train = ["train", str(Path(__file__).parent.parent / "configs" / config), "--memory", f"{folder}/memory"]
        began = time.monotonic()
        peak_train = _hmn([*train, "--run", str(run), *(f"--set={setting}" for setting in overrides)])
        trained = time.monotonic()
        peak_evaluate = _hmn(["evaluate", str(run), "--split", "valid"])
        ended = time.monotonic()
        found = json.loads((run / "evaluation-valid.json").read_text(encoding="utf-8"))
    return {
        "memory": memory,
        "backend": backend,
        "shards": shards,
        "train_seconds": trained - began,
        "evaluate_seconds": ended - trained,
        "peak_train_bytes": peak_train,
        "peak_evaluate_bytes": peak_evaluate,
        **{key: found[key] for key in ("k", "softmax_size", "missing", "overall")},
    }


def _hmn(args: list[str]) -> int:
    """Run a command, its output to our stderr; its peak bytes."""
    status, peak = run_measured([sys.executable, "-m", "deploy.cli", *args])
    if status != 0:
        raise HmnError(f"`hmn {' '.join(args[:2])}` ended with exit status {status}; its message is above")
    return peak


@click.command(
    name="simplequestions",
    epilog=examples(
        "hmn bench simplequestions --data data/simplequestions",
        "hmn bench simplequestions --data data/simplequestions --memory FB500K",
    ),
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The release, names.tsv.gz and the facts.")
@click.option("--memory", type=click.Choice(list(CONFIGS)), default="SQ", show_default=True, help="Which facts.")
@click.option("--backend", type=click.Choice(["local", "ray"]), default="ray", show_default=True)
@click.option("--shards", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Replace a setting; repeatable.")
@json_option
@click.pass_obj
def command(console: Console, data: Path, memory: str, backend: str, shards: int, settings: tuple[str, ...]) -> None:
    """Train on SimpleQuestions and evaluate on its validation split: accuracy, time, peak memory of all processes."""
    result = run_simplequestions_bench(data, memory=memory, backend=backend, shards=shards, settings=settings)
    overall = result["overall"]
    low, high = overall["intervals"]["path_accuracy"]

    def show() -> None:
        console.pairs(
            {
                "memory": f"freebase-{memory}, {shards} shards, {backend}",
                "path accuracy": f"{overall['path_accuracy']:.2%} of {overall['questions']:,} validation questions "
                f"(95 % interval {low:.2%} to {high:.2%})",
                f"recall@{result['k']}": f"{overall['recall']:.2%}",
                "ingest, embed, train": duration(result["train_seconds"]),
                "evaluate": duration(result["evaluate_seconds"]),
                "peak memory": f"{size(result['peak_train_bytes'])} training, "
                f"{size(result['peak_evaluate_bytes'])} evaluating",
            }
        )

    console.result(result, show)
