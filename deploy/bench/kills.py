"""`hmn bench kills`: kill -9 ingest, embed and train at random instants; a rerun must end as if it were the first."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from deploy.console import Console
from deploy.options import examples, json_option
from memory_store.manifest import read_manifest
from memory_store.progress import Progress, silent
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory
from trainer.metrics import read_metrics

__all__ = ["STAGES", "Kill", "command", "run_kills_bench"]

STAGES = ("ingest", "embed", "train")
LIMIT_S = 900.0
SETTINGS = (
    "model.feature_bits=15",
    "model.entity_dim=16",
    "model.relation_dim=16",
    "train.epochs=1",
    "train.max_steps=24",
    "train.batch_questions=64",
    "train.refresh_every_steps=6",
    "train.checkpoint_every_refreshes=1",
    "train.refresh_wait=late",  # so that kills meet refreshes and checkpoints on their way beside the steps
)
"""A small model trained for a few steps: a kill should find the process writing, not multiplying."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One process killed at work. at_s: seconds after its start. failure: empty when the rerun ended as the undisturbed
    run did and the memory verified."""

    stage: str
    at_s: float
    rerun_s: float
    failure: str


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A command, what its folder holds before it starts, what it must have made, and how long it takes undisturbed."""

    args: list[str]
    resume: list[str]
    before: Path
    expected: str
    seconds: float


def run_kills_bench(
    *, rounds: int = 50, backend: str = "local", seed: int = 0, source: str = "", progress: Progress = silent
) -> list[Kill]:
    """Kill `rounds` processes, in turn an ingest, an embed and a train, each at an instant drawn from its whole length.

    source: what to ingest; a few thousand places of the built-in knowledge base by default. The rerun's facts, vectors
    and last metrics are compared with those of an undisturbed run.
    """
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="hmn-kills-") as folder:
        root = Path(folder)
        stages = _undisturbed(root, backend, source or "builtin:geonames?min_population=200000", progress)
        done: list[Kill] = []
        for number in range(rounds):
            name = STAGES[number % len(STAGES)]
            done.append(_round(root / "round", name, stages[name], dice))
            progress("kills", number + 1, rounds, unit="kills", note=f"{name} at {done[-1].at_s:.1f} s")
        return done


def _undisturbed(root: Path, backend: str, source: str, progress: Progress) -> dict[str, _Stage]:
    """Run the three commands once, and keep what each starts from."""
    work = root / "undisturbed"
    work.mkdir()
    ingest = ["ingest", source, "--memory", "kb", "--backend", backend]
    settings = [*SETTINGS, f"memory.backend={json.dumps(backend)}", "memory.shards=2"]
    config = Path(__file__).resolve().parent.parent / "configs" / "geonames.toml"
    train = ["train", str(config), "--memory", "kb", "--run", "run", *(f"--set={setting}" for setting in settings)]
    embed = ["embed", "--memory", "kb", "--model", "run", "--backend", backend]
    stages: dict[str, _Stage] = {}
    for number, (name, args) in enumerate((("ingest", ingest), ("train", train), ("embed", embed))):
        before = root / f"before-{name}"
        if name == "embed":  # what train left, without the vectors that it made
            shutil.copytree(stages["train"].before, before)
            shutil.copytree(work / "run", before / "run")
            shutil.rmtree(work)
            shutil.copytree(before, work)
        else:
            shutil.copytree(work, before)
        began = time.monotonic()
        status, said = _run(args, work)
        if status != 0:
            raise click.ClickException(f"the undisturbed `hmn {' '.join(args)}` failed with status {status}: {said}")
        stages[name] = _Stage(
            args=args,
            resume=["--resume"] if name == "train" else [],
            before=before,
            expected=_digest(name, work),
            seconds=time.monotonic() - began,
        )
        progress("undisturbed", number + 1, len(STAGES), unit="commands", note=name)
    return stages


def _round(folder: Path, name: str, stage: _Stage, dice: random.Random) -> Kill:
    longest_s = stage.seconds
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stage.before, folder)
        at_s = dice.uniform(0.0, longest_s)
        began = time.monotonic()
        if _kill(stage.args, folder, at_s):
            break
        longest_s = min(longest_s, time.monotonic() - began)  # it ended first: again, and sooner
    began = time.monotonic()
    status, said = _run([*stage.args, *stage.resume], folder)
    return Kill(
        stage=name,
        at_s=at_s,
        rerun_s=time.monotonic() - began,
        failure=f"status {status}: {said}" if status else _difference(name, folder, stage.expected),
    )


def _hmn(args: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "deploy.cli", *args]


def _environment() -> dict[str, str]:
    return os.environ | {"HMN_DEBUG": ""}


def _kill(args: Sequence[str], folder: Path, at_s: float) -> bool:
    """Start a command, kill -9 it after at_s seconds; whether it was still at work."""
    with subprocess.Popen(
        _hmn(args), cwd=folder, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(timeout=at_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True
        return False


def _run(args: Sequence[str], folder: Path) -> tuple[int, str]:
    """(exit status, last line of what it said) of a command run to its end."""
    try:
        ended = subprocess.run(
            _hmn(args), cwd=folder, env=_environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end within {LIMIT_S:g} s"
    return ended.returncode, (ended.stderr.strip().splitlines() or [""])[-1]


def _difference(name: str, folder: Path, expected: str) -> str:
    """Empty when the rerun made what the undisturbed run made and every byte of the memory verifies."""
    report = verify_memory(str(folder / "kb"))
    if report.problems:
        return f"the memory does not verify: {report.problems[0]}"
    found = _digest(name, folder)
    return "" if found == expected else f"expected content {expected}, found {found}"


def _digest(name: str, folder: Path) -> str:
    """What a command made, without names and times: checksums of the parts, and for a run its losses."""
    manifest = read_manifest(Storage(str(folder / "kb")))
    made: list[Any] = [sorted(part.checksum for part in manifest.facts)]
    if name != "ingest":
        made.append(sorted(part.checksum for part in manifest.vectors))
    if name == "train":
        made.append([[line["step"], line["loss"]] for line in read_metrics(folder / "run") if line["kind"] == "train"])
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]


@click.command(name="kills", epilog=examples("hmn bench kills", "hmn bench kills --rounds 6 --backend ray"))
@click.option("--rounds", type=click.IntRange(min=1), default=50, show_default=True, help="Processes to kill.")
@click.option("--backend", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@click.pass_obj
def command(console: Console, rounds: int, backend: str, seed: int) -> int:
    """Kill -9 ingest, embed and train at random instants and run them again.

    Exit status 1 when a rerun fails, makes something else than the undisturbed run, or leaves a memory that does not
    verify.
    """
    kills = run_kills_bench(rounds=rounds, backend=backend, seed=seed, progress=console.progress)
    failed = [kill for kill in kills if kill.failure]
    rows = [
        (
            stage,
            len(own),
            sum(bool(kill.failure) for kill in own),
            f"{sum(kill.rerun_s for kill in own) / len(own):.1f}",
        )
        for stage in STAGES
        if (own := [kill for kill in kills if kill.stage == stage])
    ]

    def show() -> None:
        console.table(("command", "killed at work", "failures", "mean rerun s"), rows, title="kill -9 and rerun")
        for kill in failed:
            console.write(f"{kill.stage} killed at {kill.at_s:.2f} s: {kill.failure}")

    console.result({"rounds": len(kills), "failures": len(failed), "kills": [asdict(kill) for kill in kills]}, show)
    return 1 if failed else 0
