"""The stages of a long command: what each took and held."""

import io
import json

import pytest

from deploy.console import Console
from deploy.stages import Stage, Stages


def test_a_stage_says_its_time_its_rate_and_its_memory() -> None:
    out = io.StringIO()
    stages = Stages(Console(out, io.StringIO()))
    with stages.stage("ingest", "Ingest: raw facts") as stage:
        stage.did(1_000, "facts")
    with stages.stage("look", "Look"):
        pass
    stages.show()
    heads = [line.split()[0] for line in out.getvalue().splitlines() if line.strip()]
    assert heads[0] == "Ingest:"
    assert heads[-5:] == ["stage", "-" * len("ingest"), "ingest", "look", "all"]
    assert "facts a second" in out.getvalue()
    ingest, look = stages.story().values()
    assert ingest["done"] == 1_000
    assert ingest["unit"] == "facts"
    assert ingest["seconds"] >= 0
    assert min(ingest["peak_bytes"], look["peak_bytes"]) > 10 << 20, "a Python process holds more than that"


def test_a_rate_is_only_said_where_something_was_counted() -> None:
    assert str(Stage(name="ask", seconds=2.0, peak_bytes=1 << 30)) == "2.0 s, at most 1.0 GiB"
    assert Stage(name="ask", seconds=2.0, done=9, unit="questions").rate == "4 questions a second"


def test_a_stage_that_fails_is_not_counted_as_ended() -> None:
    stages = Stages(Console(io.StringIO(), io.StringIO()))
    with pytest.raises(ValueError, match="broken"), stages.stage("train", "Train"):
        raise ValueError("broken")
    assert stages.ended == []


def test_with_json_nothing_is_written_on_stdout() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err)
    console.json = True
    stages = Stages(console)
    with stages.stage("train", "Train"):
        stages.say("it learns")
    assert out.getvalue() == ""
    assert "it learns" in err.getvalue()
    json.dumps(stages.story())
