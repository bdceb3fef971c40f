"""hmn doctor: what it reads from a machine, and what it says about it."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from deploy.checks import (
    Level,
    check_machine,
    check_packages,
    check_ports,
    check_storage,
    check_token,
    locked,
    usable_memory_bytes,
)
from deploy.checks import _check_package as check_package
from deploy.ray_check import check_ray


def test_every_dependency_of_the_project_is_checked_and_fits() -> None:
    checks = {check.name: check for check in check_packages(locked())}
    assert {"python", "ray", "torch", "faiss-cpu", "pyarrow"} <= set(checks)
    assert [check for check in checks.values() if check.level is Level.FAIL] == []
    assert "ruff" not in checks  # a developer's tool is not needed to run


def test_a_package_that_is_missing_too_old_or_untested_is_told_apart() -> None:
    missing = check_package(Requirement("no-such-package-here>=1"), None)
    too_old = check_package(Requirement("click>=9999"), None)
    untested = check_package(Requirement("click>=1"), "0.1")
    assert [check.level for check in (missing, too_old, untested)] == [Level.FAIL, Level.FAIL, Level.WARN]
    assert all(check.advice for check in (missing, too_old, untested))


def test_a_processor_without_low_precision_products_is_a_warning(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu avx2 sse\n")
    (check,) = [check for check in check_machine(cpuinfo, tmp_path / "none") if check.name == "instructions"]
    assert check.level is Level.WARN
    assert check.found == "avx2"
    cpuinfo.write_text("processor : 0\nflags : avx2 avx512_vnni amx_bf16\n")
    (check,) = [check for check in check_machine(cpuinfo, tmp_path / "none") if check.name == "instructions"]
    assert check.level is Level.OK


def test_a_container_s_limit_counts_as_the_memory_there_is(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert usable_memory_bytes(tmp_path) == (600, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_memory_bytes(tmp_path)[1] > 2**20


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    checks = {check.name: check for check in check_storage(tmp_path / "not there")}
    assert checks["disk"].level is Level.FAIL
    assert {check.name: check.level for check in check_storage(tmp_path)}["disk"] is not Level.FAIL


def test_a_busy_port_is_a_warning_and_a_free_one_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (check,) = check_ports({port: "a test"})
        assert check.level is Level.WARN
    (check,) = check_ports({port: "a test"})
    assert check.level is Level.OK


def test_token_authentication_without_a_token_is_a_warning(tmp_path: Path) -> None:
    assert check_token({"RAY_AUTH_MODE": "token"}, tmp_path).level is Level.WARN
    assert check_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, tmp_path).level is Level.OK
    assert check_token({}, tmp_path).level is Level.OK


@pytest.mark.parametrize("before", range(150, 200, 7))
def test_a_password_is_hidden_wherever_the_line_of_ray_is_cut(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    said = f"{'x' * before} ray://user:a-password-of-many-letters@head:1"
    process = SimpleNamespace(communicate=lambda timeout: (said, None), returncode=1)
    monkeypatch.setattr("deploy.ray_check.subprocess.Popen", lambda *_, **__: process)
    assert "user" not in check_ray().found
