"""The way of a user: ingest, train, evaluate, ask, embed, inspect, verify, each by its command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deploy.cli import hmn
from deploy.entry import run
from memory_store import MemoryWriter

PEOPLE = [f"{first} {last}" for first in ("ann", "bob", "carla", "dmitri") for last in ("smith", "okafor", "moreau")]
ASKED = {"born_in": "where was {} born", "works_as": "what does {} do for a living"}
CONFIG = """
run_dir = "{folder}/run"
[memory]
url = "{folder}/memory"
shards = 2
[data]
questions = "{folder}/questions_*.tsv"
facts = ["{folder}/facts.tsv"]
[model]
entity_dim = 16
relation_dim = 16
feature_bits = 12
hidden = 16
[train]
epochs = 12
batch_questions = 12
k = 4
swap_subjects = 0.0
refresh_every_steps = 4
threads = 1
"""


def write_world(folder: Path) -> Path:
    facts, questions = (
        ["subject_id\tsubject\trelation\tobject_id\tobject"],
        ["subject_id\trelation\tobject_id\tquestion"],
    )
    for number, name in enumerate(PEOPLE):
        for relation, asked in ASKED.items():
            thing = f"{relation}-{number % 5}"
            facts.append(f"p{number}\t{name}\t{relation}\t{thing}\tThe {thing}")
            questions.append(f"p{number}\t{relation}\t{thing}\t{asked.format(name)}")
    (folder / "facts.tsv").write_text("\n".join(facts) + "\n")
    for split in ("train", "valid", "test"):
        (folder / f"questions_{split}.tsv").write_text("\n".join(questions) + "\n")
    (folder / "run.toml").write_text(CONFIG.replace("{folder}", str(folder)))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts, questions, and a trained run over them."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    assert run(hmn, ["train", str(folder / "run.toml")]) == 0
    return folder


def asked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """The one JSON object that a command prints."""
    capsys.readouterr()
    assert run(hmn, [*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_trained_run_answers_a_question_with_the_facts_it_read(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked(["ask", "where was carla okafor born", "--run", str(world / "run"), "--k", "3"], capsys)
    (answer,) = found["answers"]
    assert [fact["relation"] for fact in answer["facts"][:1]] == ["born_in"]
    assert answer["facts"][0]["subject"] == "carla okafor"
    assert sum(fact["weight"] for fact in answer["facts"]) == pytest.approx(1)


def test_an_answer_is_readable(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(hmn, ["ask", "where was carla okafor born", "--run", str(world / "run")]) == 0
    shown = capsys.readouterr().out
    assert "carla okafor, born_in: The born_in-" in shown
    assert "weight" in shown
    assert "generation" in shown


def test_evaluation_counts_every_question_and_is_kept_in_the_run(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked(["evaluate", str(world / "run"), "--split", "test"], capsys)
    assert found["overall"]["questions"] == len(PEOPLE) * len(ASKED)
    assert found["overall"]["path_accuracy"] > 0.8
    assert json.loads((world / "run" / "evaluation-test.json").read_text()) == found


def test_a_run_has_a_report_which_an_evaluation_adds_to_and_which_can_be_made_again(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = world / "run" / "report.html"
    asked(["evaluate", str(world / "run"), "--split", "valid"], capsys)
    evaluated = page.read_text()
    assert "Accuracy: valid" in evaluated
    assert "What the stale memory still finds" in evaluated
    page.unlink()
    made = asked(["report", str(world / "run")], capsys)
    assert made == {"report": str(page), "data": str(page.with_suffix(".json"))}
    assert page.read_text() == evaluated
    assert json.loads(page.with_suffix(".json").read_text())["evaluations"]["valid"]["right"]


def test_a_run_is_compared_with_another_one(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    settings = ["--run", str(other), "--set", "train.epochs=1"]
    asked(["train", str(world / "run.toml"), "--memory", str(tmp_path / "memory"), *settings], capsys)
    page = tmp_path / "compare.html"
    found = asked(["compare", str(world / "run"), str(other), "--html", str(page)], capsys)
    assert [run["name"] for run in found["runs"]] == ["run", "other"]
    assert found["differences"]["train.epochs"] == [12, 1]
    assert "While training" in page.read_text()


def test_a_run_without_held_out_questions_advises_no_evaluation_that_would_be_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_world(tmp_path)
    with (folder / "questions_train.tsv").open("a") as more:
        more.write("p99\tborn_in\tx\twhere was nobody born\n")
    capsys.readouterr()
    short = ["--set", f"data.questions={folder}/questions_train.tsv", "--set", "train.max_steps=2"]
    assert run(hmn, ["train", str(folder / "run.toml"), *short]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^Trained 2 steps in \S+ s, \S+ s of them in steps and refreshes; last loss", shown)
    left_out = "1 of 25 training questions asks for facts that the memory does not hold, for example 'where was nobody"
    assert left_out in shown
    assert "Now:" not in shown
    evaluate = ["evaluate", f"{folder}/run"]
    assert f"hmn evaluate {folder}/run --questions FILE" in shown
    assert run(hmn, evaluate) == 1
    assert "hmn evaluate RUN --questions FILE" in capsys.readouterr().err
    assert run(hmn, [*evaluate, "--questions", f"{folder}/questions_valid.tsv"]) == 0
    assert run(hmn, [*evaluate, "--split", "train"]) == 0
    assert "train: generation 3, softmax" in (shown := capsys.readouterr().out)
    assert "1 of 25 questions asks for facts that the memory does not hold, for example 'where was nobody" in shown


def test_a_run_of_relative_paths_is_used_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_world(tmp_path)
    (folder / "run.toml").write_text(CONFIG.replace("{folder}/", "").replace("epochs = 12", "epochs = 1"))
    monkeypatch.chdir(folder)
    assert run(hmn, ["train", "run.toml"]) == 0
    here = [asked(["evaluate", "run"], capsys), asked(["ask", "who", "--run", "run"], capsys)]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    there = [asked(["evaluate", "../run"], capsys), asked(["ask", "who", "--run", "../run"], capsys)]
    assert there[0]["overall"] == here[0]["overall"]
    assert there[1]["answers"][0]["facts"] == here[1]["answers"][0]["facts"]
    assert list(elsewhere.iterdir()) == []


def test_a_finished_run_is_not_trained_again_by_accident(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(hmn, ["train", str(world / "run.toml")]) == 2
    said = capsys.readouterr().err
    assert "--resume" in said
    assert "it is finished" in said
    resumed = asked(["train", str(world / "run.toml"), "--resume"], capsys)
    assert resumed["resumed_from"] == resumed["steps"]
    assert run(hmn, ["train", str(world / "run.toml"), "--resume"]) == 0
    assert "The run was finished at step" in capsys.readouterr().out


def test_another_memory_is_embedded_by_the_model_and_then_asked(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.tsv").write_text(
        "subject_id\tsubject\trelation\tobject_id\tobject\nz\tzoe stone\tborn_in\tx\tXanten\n"
    )
    memory = str(tmp_path / "memory")
    asked(["ingest", str(tmp_path / "more.tsv"), "--memory", memory], capsys)
    capsys.readouterr()
    ask = ["ask", "where was zoe stone born", "--run", str(world / "run"), "--memory", memory]
    assert run(hmn, ask) == 1  # not embedded yet
    assert "hmn embed" in capsys.readouterr().err
    summary = asked(["embed", "--memory", memory, "--model", str(world / "run")], capsys)
    assert (summary["generation"], summary["committed"]) == (2, True)
    assert not asked(["embed", "--memory", memory, "--model", str(world / "run")], capsys)["committed"]
    (answer,) = asked(ask, capsys)["answers"]
    assert answer["facts"][0]["objects"] == ["Xanten"]
    (tmp_path / "one.tsv").write_text("y\tborn_in\tw\n")
    asked(["ingest", str(tmp_path / "one.tsv"), "--memory", memory], capsys)
    assert run(hmn, ["embed", "--memory", memory, "--model", str(world / "run")]) == 0
    assert "1 facts; 1 as an earlier generation has them" in capsys.readouterr().out


def test_vectors_of_another_dimension_or_model_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MemoryWriter(str(tmp_path / "memory"), dim=3) as writer:
        writer.append(pa.table({"fact_id": [1, 2]}), np.ones((2, 3), np.float32))
    capsys.readouterr()
    assert run(hmn, ["ask", "anything", "--run", str(world / "run"), "--memory", str(tmp_path / "memory")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: expected facts embedded by this model")
    assert shown.err.count("\n") == 1


def test_inspect_and_verify_tell_the_same_story(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = asked(["inspect", str(world / "memory")], capsys)
    current = report["generations"][-1]
    assert current["manifest"]["fact_count"] == len(PEOPLE) * len(ASKED)
    assert [pin.rpartition("-")[0] for pin in current["pins"]] == ["run-run"]
    checked = asked(["verify", str(world / "memory")], capsys)
    assert checked["ok"]
    assert checked["generations"][-1]["generation"] == current["generation"]


def test_a_command_is_also_a_module_and_reads_questions_from_stdin(world: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.jobs.ask", "--run", str(world / "run"), "--k", "1", "--json"],
        input="where was ann smith born\n\nwhat does bob moreau do for a living\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    read = [answer["facts"][0]["relation"] for answer in json.loads(done.stdout)["answers"]]
    assert read == ["born_in", "works_as"]


def test_ctrl_c_ends_training_quietly_and_resume_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_world(tmp_path)
    arguments = ["train", str(folder / "run.toml"), "--set", "train.epochs=150"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that starts the tests in the background lets its children ignore Ctrl-C; a terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    latest = folder / "run" / "checkpoints" / "latest.json"
    deadline_s = time.monotonic() + 120
    while not latest.exists() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    before = json.loads(latest.read_text())["step"]
    resumed = asked([*arguments, "--resume"], capsys)
    assert 0 < before == resumed["resumed_from"] < resumed["steps"]


def test_a_fresh_fact_is_upserted_found_and_deleted_again_without_training(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(world / "memory", tmp_path / "memory")
    memory, trained = str(tmp_path / "memory"), str(world / "run")
    (tmp_path / "news.tsv").write_text("p99\tzoe quill\tborn_in\tnowhere\tNowhere\n")
    done = asked(["upsert", str(tmp_path / "news.tsv"), "--memory", memory, "--model", trained], capsys)
    assert (done["facts"], done["committed"], done["quarantined"]) == (1, True, 0)
    question = ["ask", "where was zoe quill born", "--run", trained, "--memory", memory, "--k", "3"]
    answers = asked(question, capsys)
    assert answers["generation"] == done["generation"]
    assert "zoe quill" in [fact["subject"] for fact in answers["answers"][0]["facts"]]
    again = asked(["reindex", "--memory", memory, "--model", trained, "--index", "exact", "--shards", "2"], capsys)
    assert (again["generation"], again["recall"], again["shards"]) == (done["generation"], 1.0, 2)
    gone = asked(["delete", str(tmp_path / "news.tsv"), "--memory", memory], capsys)
    assert gone["generation"] == done["generation"] + 1
    facts = asked(question, capsys)["answers"][0]["facts"]
    assert "zoe quill" not in [fact["subject"] for fact in facts]
    assert run(hmn, ["reindex", "--memory", memory]) == 2
    for arguments in (["reindex", "--memory", memory, "--model", trained], ["inspect", memory]):
        assert run(hmn, arguments) == 0
    assert run(hmn, ["verify", memory]) == 0


def test_facts_upserted_by_another_process_while_a_run_trains_are_known_to_it_when_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_world(tmp_path)
    settings = ["model.entity_dim=64", "model.feature_bits=14", "train.epochs=200", "train.refresh_every_steps=20"]
    training = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "train", str(folder / "run.toml"), "--json"]
        + [word for setting in settings for word in ("--set", setting)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    memory, trained = str(folder / "memory"), str(folder / "run")
    strangers = ["zoe quill", "yusuf tanaka", "xenia brandt"]
    rows = [
        f"n{number}\t{name}\t{relation}\tt{number}\tThing {number}"
        for number, name in enumerate(strangers)
        for relation in ASKED
    ]
    (folder / "news.tsv").write_text("\n".join(rows) + "\n")
    upsert = ["upsert", str(folder / "news.tsv"), "--memory", memory, "--model", trained, "--wait", "120"]
    deadline_s = time.monotonic() + 120
    while not (folder / "run" / "config.toml").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    written = asked(upsert, capsys)
    out, shown = training.communicate(timeout=120)
    assert training.returncode == 0, shown
    assert json.loads(out)["generation"] > written["generation"], "the run embedded them anew"
    questions = [(name, relation, ASKED[relation].format(name)) for name in strangers for relation in ASKED]
    answers = asked(["ask", *(text for _, _, text in questions), "--run", trained], capsys)["answers"]
    read = [(answer["facts"][0]["subject"], answer["facts"][0]["relation"]) for answer in answers]
    assert read == [(name, relation) for name, relation, _ in questions]
