"""kill -9 of the only replica of a service: whoever asks gets an answer or a declared refusal, and soon the answer."""

import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.bench.serve import running_service
from deploy.client import AskResult, Client, Fact, RetryPolicy
from pipeline.ingest import ingest
from trainer.config import RunConfig
from trainer.loop import train
from trainer.settings import build

TOKEN = "a token that is long enough"
COMES_BACK_S = 120.0  # on a busy machine; a few seconds on a quiet one
PATIENT = RetryPolicy(attempts=1000, deadline_s=COMES_BACK_S)


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    """A run of a moment over two people."""
    facts = "subject_id\tsubject\trelation\tobject_id\tobject\n"
    rows = "p1\tann\tborn_in\tx1\tAnnaba\np2\tbob\tborn_in\tx2\tBern\n"
    (tmp_path / "facts.tsv").write_text(facts + rows)
    for split in ("train", "valid"):
        asked = "subject_id\trelation\tobject_id\tquestion\np1\tborn_in\tx1\twhere was ann born\n"
        (tmp_path / f"questions_{split}.tsv").write_text(asked)
    ingest([str(tmp_path / "facts.tsv")], str(tmp_path / "memory"))
    train(
        build(
            RunConfig,
            {
                "run_dir": str(tmp_path / "run"),
                "memory": {"url": str(tmp_path / "memory")},
                "data": {"questions": str(tmp_path / "questions_*.tsv")},
                "model": {"entity_dim": 8, "relation_dim": 8, "feature_bits": 10, "hidden": 8, "reader_hidden": 8},
                "train": {"epochs": 1, "batch_questions": 2, "k": 2, "threads": 1},
            },
        )
    )
    return str(tmp_path / "run")


def replicas(service_pid: int) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(service_pid).children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "ServeReplica" in (process.cmdline() or [""])[0]
    ]


@pytest.mark.timeout(600)
def test_a_killed_replica_costs_its_clients_time_and_no_answer(run_dir: str) -> None:
    with running_service(["--run", run_dir], TOKEN) as (url, pid), Client(url, token=TOKEN, retry=PATIENT) as client:
        written = client.upsert([Fact(subject_id="p3", subject="eve", relation="born_in", object_ids=["x3"])])
        before = client.ask("where was eve born", k=3)
        assert before.generation == written.generation
        answers: list[AskResult] = []
        statuses: set[int] = set()
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=url, timeout=60) as plain:
                while not stop.is_set():
                    reply = plain.post("/v1/ask", json={"text": "where was ann born"})
                    statuses.add(reply.status_code)
                    assert reply.is_success or reply.json()["error"]["type"] == "unavailable"

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            (victim,) = replicas(pid)
            victim.kill()
            killed_s = time.monotonic()
            answers.append(client.ask("where was eve born", k=3))
            took_s = time.monotonic() - killed_s
        finally:
            stop.set()
            asking.join()
        assert [fact.fact_id for fact in answers[0].answers[0].facts] == [
            fact.fact_id for fact in before.answers[0].facts
        ], "what was written is there again"
        assert answers[0].generation == written.generation
        assert statuses <= {200, 503}
        assert took_s < COMES_BACK_S
