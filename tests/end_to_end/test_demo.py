"""The demo, cut short: every step of it on Ray; and the full one, twice, in a world of few places."""

import io
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from deploy.console import Console
from deploy.jobs.demo import FULL, QUESTIONS, SHARDS, command
from memory_store.manifest import read_manifest
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory
from pipeline.sources.builtin import parse_builtin
from trainer.config import load_config

SHORT = [
    "train.max_steps=3",
    "model.feature_bits=12",
    "model.entity_dim=16",
    "model.relation_dim=16",
    "train.threads=1",
]


def demo(folder: Path) -> Any:
    settings = [word for setting in SHORT for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "demo", "--dir", str(folder), *settings, "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_demo_asks_its_questions_on_ray(tmp_path: Path) -> None:
    story = demo(tmp_path)
    assert story["facts"] > 30_000
    assert [answer["question"] for answer in story["answers"]] == list(QUESTIONS)
    assert all(answer["facts"] for answer in story["answers"])
    assert f"shards = {SHARDS}" in (tmp_path / "run" / "config.toml").read_text()
    assert {"ray", "ingest", "train", "evaluate", "ask", "re-index"} == story["stages"].keys()
    assert story["reindex"]["searches"]
    assert (story["reindex"]["failed"], story["reindex"]["wrong"]) == (0, 0)


def full_demo(folder: Path) -> Any:
    """`hmn demo --full` in this process, with few places instead of all."""
    few = "builtin:geonames?min_population=5000000&max_questions=600"
    options = [*SHORT, f'data.facts=["{few}"]', f'data.questions="{few}"', "memory.backend=local"]
    settings = [word for setting in options for word in ("--set", setting)]
    out = io.StringIO()
    console = Console(out, io.StringIO())
    console.json = True
    done = CliRunner().invoke(command, ["--full", "--dir", str(folder), *settings], obj=console)
    assert done.exception is None, done.exc_info
    return json.loads(out.getvalue())


def test_the_full_demo_re_indexes_while_it_answers_and_says_what_each_stage_took(tmp_path: Path) -> None:
    first = full_demo(tmp_path)
    assert first["places"] < first["facts"] <= first["triples"]
    stages = first["stages"]
    assert list(stages) == ["ingest", "train", "evaluate", "ask", "re-index"]
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 0 for stage in stages.values())
    assert stages["ingest"]["done"] == first["triples"]
    assert stages["re-index"]["done"] == first["facts"]
    found = first["reindex"]
    assert (found["failed"], found["wrong"], found["dtype"]) == (0, 0, "bfloat16")
    assert found["searches"]
    assert found["same"] >= len(QUESTIONS) - 2, "bfloat16 may turn a near tie around in a model of three steps"
    storage = Storage(str(tmp_path / "memory"))
    now = read_manifest(storage)
    assert (now.generation, now.dtype, now.fact_count) == (found["generation"], "bfloat16", first["facts"])
    second = full_demo(tmp_path)
    assert second["generation"] == first["generation"], "the run keeps its generation, and nothing is trained again"
    assert second["accuracy"] == first["accuracy"]
    assert second["reindex"]["dtype"] == "float32"
    kept = {generation.generation for generation in inspect_memory(storage).generations}
    assert {first["generation"], second["reindex"]["generation"]} <= kept
    assert first["reindex"]["generation"] not in kept, "superseded, and made by the demo"


def test_full_is_every_place_of_the_package() -> None:
    config = load_config(str(files("deploy") / "configs" / "geonames.toml"), FULL)
    assert (
        parse_builtin(config.data.facts[0]).min_population == parse_builtin(config.data.questions).min_population == 0
    )
