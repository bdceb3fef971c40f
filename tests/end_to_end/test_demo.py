"""The demo, cut short: every step of it on Ray, twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from deploy.jobs.demo import QUESTIONS, SHARDS

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


def test_the_demo_asks_its_questions_and_a_second_one_trains_nothing_again(tmp_path: Path) -> None:
    first = demo(tmp_path)
    assert first["facts"] > 30_000
    assert [answer["question"] for answer in first["answers"]] == list(QUESTIONS)
    assert all(answer["facts"] for answer in first["answers"])
    assert f"shards = {SHARDS}" in (tmp_path / "run" / "config.toml").read_text()
    second = demo(tmp_path)
    assert second["generation"] == first["generation"]
    assert second["accuracy"] == first["accuracy"]
