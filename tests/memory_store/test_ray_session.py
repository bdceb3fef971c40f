"""Joining Ray: what is said to somebody whom a cluster does not let in, and who hears of SIGTERM afterwards."""

import os
import signal
import subprocess
import sys

import pytest
import ray

from memory_store.errors import RayUnavailable
from memory_store.ray_session import ensure_ray


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        (None, r"set RAY_AUTH_MODE=token \(it is not set\)"),
        ("disabled", r"set RAY_AUTH_MODE=token \(it is disabled\)"),
        ("token", "is this one the token of its head"),
    ],
)
def test_who_is_not_let_in_is_told_to_look_at_the_token(
    monkeypatch: pytest.MonkeyPatch, mode: str | None, advice: str
) -> None:
    def refuse(**_: object) -> None:
        """As Ray does when the head refuses the token: it says nothing of that."""
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from RuntimeError("timed out")

    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RayUnavailable, match=advice):
        ensure_ray(join="auto")


def test_where_no_cluster_runs_no_token_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", find_none)
    with pytest.raises(RayUnavailable, match="start one with `ray start --head`") as refused:
        ensure_ray(join="auto")
    assert "token" not in str(refused.value)


SLEEPER = """
import signal, sys, time
from memory_store.ray_session import ensure_ray

def end(*_):
    sys.exit(7)

if "ours" in sys.argv:
    signal.signal(signal.SIGTERM, end)
ensure_ray()
print("joined", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("says_what", "status"), [("ours", 7), ("nothing", signal.SIGTERM)])
def test_sigterm_is_the_programs_own_and_leaves_no_trace(ray_cluster: None, says_what: str, status: int) -> None:
    joins = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, says_what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=joins
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == status
    assert "SIGTERM" not in shown
