"""`hmn serve`: what it hands on, and what it keeps to itself."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.cli import hmn
from deploy.entry import run
from deploy.serve.settings import ServeSettings

TOKEN = "a token that is long enough"


def test_the_token_is_not_in_the_environment_that_the_processes_of_ray_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited: dict[str, str] = {}
    given: list[ServeSettings] = []

    def serve_run(settings: ServeSettings, **_: Any) -> None:
        inherited.update(os.environ)
        given.append(settings)

    monkeypatch.setenv("HMN_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")  # so that no port is tried
    monkeypatch.setattr("deploy.serve.source.located", lambda source: source)
    monkeypatch.setitem(sys.modules, "deploy.serve.replica", SimpleNamespace(serve_run=serve_run))  # without Ray Serve
    assert run(hmn, ["serve", "--run", "runs/none"]) == 0
    assert TOKEN not in inherited.values()
    assert given[0].access.admits(f"Bearer {TOKEN}".encode())
