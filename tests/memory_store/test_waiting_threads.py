"""Threads of OpenMP that wait give their core away soon, whichever package of ours a process loads first."""

import os
import subprocess
import sys

import pytest

LOADED = "import os, sys, {package}; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize("package", ["memory_store", "pipeline", "trainer", "deploy"])
def test_every_package_says_so_before_torch_is_loaded(package: str) -> None:
    assert _loaded(package, without="GOMP_SPINCOUNT") == ["2000", "False"]


def test_what_the_user_has_set_stays() -> None:
    assert _loaded("trainer", GOMP_SPINCOUNT="7") == ["7", "False"]


def _loaded(package: str, *, without: str = "", **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name != without}
    command = [sys.executable, "-c", LOADED.format(package=package)]
    return subprocess.check_output(command, env=inherited | environment, text=True).split()
