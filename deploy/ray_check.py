"""[ray] Starts or joins Ray and waits for one actor's answer; `hmn doctor` runs it as a process it can give up on."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import ray

from deploy.checks import Check, Level
from memory_store.ray_session import ensure_ray
from memory_store.redaction import redact

__all__ = ["check_ray"]

TIMEOUT_S = 90.0


class Echo:
    """The smallest actor there is."""

    def say(self, word: str) -> str:
        return word


def check_ray(timeout_s: float = TIMEOUT_S) -> Check:
    """Whether Ray starts (or the cluster of RAY_ADDRESS is joined) and an actor answers, in a process of its own."""
    address = os.environ.get("RAY_ADDRESS")
    name = f"ray at {address}" if address else "local ray"
    started_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.ray_check"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Check(
            name=name,
            level=Level.FAIL,
            found=f"no answer within {timeout_s:.0f} s",
            advice="is RAY_ADDRESS right and reachable?" if address else "see the logs under /tmp/ray/session_latest",
        )
    if process.returncode == 0:
        return Check(name=name, level=Level.OK, found=f"an actor answered after {time.monotonic() - started_s:.1f} s")
    last = (said.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    return Check(
        name=name,
        level=Level.FAIL,
        found=redact(last)[:200],
        advice="`python -m deploy.ray_check` shows the whole story",
    )


def _probe() -> None:
    ensure_ray(num_cpus=1)
    echo: Any = ray.remote(num_cpus=0)(Echo).remote()
    if ray.get(echo.say.remote("here"), timeout=60) != "here":
        raise SystemExit("the actor answered something else")


if __name__ == "__main__":
    _probe()
