"""The checks of `hmn doctor`: pure readings of this machine, each with what to do when it is not well."""

import errno
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from deploy.console import size

__all__ = ["Check", "Level", "check_machine", "check_packages", "check_ports", "check_storage", "check_token", "locked"]

GIB = 2**30
RAY_PORTS = {6379: "the head's address, `ray start --head`", 8265: "the dashboard and `ray job submit`"}


class Level(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `hmn doctor`. advice: what to do; empty when nothing is to be done."""

    name: str
    level: Level
    found: str
    advice: str = ""


def check_packages(pins: Mapping[str, str] | None = None) -> Iterator[Check]:
    """Python, and each dependency against the range this project allows and the version the lock pins (if known)."""
    enough = sys.version_info >= (3, 11)
    yield Check(
        name="python",
        level=Level.OK if enough else Level.FAIL,
        found=f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        advice="" if enough else "install Python 3.11 or newer",
    )
    try:
        wanted = [Requirement(line) for line in requires("hmn") or []]
    except PackageNotFoundError:
        yield Check(
            name="packages",
            level=Level.WARN,
            found="hmn runs from a folder, it is not installed",
            advice="`make setup`, or `pip install --editable .`",
        )
        return
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _check_package(requirement, (pins or {}).get(requirement.name.lower()))


def _check_package(requirement: Requirement, pinned: str | None) -> Check:
    name = requirement.name
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name=name, level=Level.FAIL, found="not installed", advice=f"pip install '{requirement}'")
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(
            name=name, level=Level.FAIL, found=f"{found}, expected {requirement.specifier}", advice="run `make setup`"
        )
    if pinned is not None and pinned != found.partition("+")[0]:
        return Check(
            name=name,
            level=Level.WARN,
            found=f"{found}, tested with {pinned}",
            advice="`make setup` installs what was tested",
        )
    return Check(name=name, level=Level.OK, found=found)


def locked() -> dict[str, str]:
    """Package -> version from requirements.lock, where the project runs from its repository; else empty."""
    path = Path(__file__).resolve().parent.parent / "requirements.lock"
    if not path.is_file():
        return {}
    pairs = (line.split("==") for line in path.read_text().splitlines() if "==" in line and not line.startswith("#"))
    return {name.lower(): pinned for name, pinned in pairs}


def check_machine(cpuinfo: Path = Path("/proc/cpuinfo"), shm: Path = Path("/dev/shm")) -> Iterator[Check]:
    """Instruction sets, cores, memory and shared memory."""
    yield _check_instructions(cpuinfo)
    cores = usable_cores()
    yield Check(name="cores", level=Level.OK, found=f"{cores} usable: at most {cores} shards search at full speed")
    free, total = usable_memory_bytes()
    level = Level.FAIL if free < GIB else Level.WARN if free < 4 * GIB else Level.OK
    yield Check(
        name="memory",
        level=level,
        found=f"{size(free)} free of {size(total)}",
        advice="" if level is Level.OK else "ask `hmn plan` what your memory needs; close what you can",
    )
    if shm.is_dir():
        room = shutil.disk_usage(shm).free
        enough = room >= GIB
        yield Check(
            name="shared memory",
            level=Level.OK if enough else Level.WARN,
            found=f"{size(room)} free in {shm}",
            advice="" if enough else "Ray falls back to the disk; in a container pass --shm-size=2g or more",
        )


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """(free, total) bytes, as a container's limit sees them."""
    seen = psutil.virtual_memory()
    free, total = int(seen.available), int(seen.total)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free, total
    return min(free, max(limit - used, 0)), min(total, limit)


def _check_instructions(cpuinfo: Path) -> Check:
    try:
        text = cpuinfo.read_text()
    except OSError:
        return Check(name="instructions", level=Level.OK, found=f"unknown on {platform.system()} {platform.machine()}")
    flags = next((set(line.split()) for line in text.splitlines() if line.startswith(("flags", "Features"))), set())
    known = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "i8mm"]
    found = [flag for flag in known if flag in flags]
    fast = bool({"avx512_bf16", "amx_bf16", "bf16", "avx512_vnni", "amx_int8", "i8mm"} & flags)
    return Check(
        name="instructions",
        level=Level.OK if fast else Level.WARN,
        found=" ".join(found) or "none that speed up search",
        advice="" if fast else "exact search is as right but slower here: no low-precision products",
    )


def check_storage(folder: Path) -> Iterator[Check]:
    """Room and rights where memories and runs are written, and where Ray keeps its session."""
    for name, place in (("disk", folder), ("temporary files", Path(tempfile.gettempdir()))):
        try:
            with tempfile.NamedTemporaryFile(dir=place) as probe:
                probe.write(b"hmn")
                probe.flush()
                os.fsync(probe.fileno())
            room = shutil.disk_usage(place).free
        except OSError as error:
            why = "is full" if error.errno == errno.ENOSPC else f"cannot be written: {error.strerror}"
            yield Check(
                name=name, level=Level.FAIL, found=f"{place} {why}", advice="change to another folder or free space"
            )
            continue
        level = Level.FAIL if room < GIB else Level.WARN if room < 10 * GIB else Level.OK
        yield Check(
            name=name,
            level=level,
            found=f"{size(room)} free in {place}",
            advice="" if level is Level.OK else "ask `hmn plan` what your memory needs",
        )


def check_ports(ports: Mapping[int, str] = RAY_PORTS) -> Iterator[Check]:
    """Whether a Ray head could be started here; a busy port is normal where one runs already."""
    for port, purpose in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                free = True
            except OSError:
                free = False
        yield Check(
            name=f"port {port}",
            level=Level.OK if free else Level.WARN,
            found=f"{'free' if free else 'in use'} ({purpose})",
            advice="" if free else "fine if your Ray head runs here; else pass `ray start` another port",
        )


def check_token(environment: Mapping[str, str], home: Path) -> Check:
    """Whether Ray's token authentication is on, and whether a token is where Ray looks for one."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    where = "RAY_AUTH_TOKEN" if environment.get("RAY_AUTH_TOKEN") else str(path) if path.is_file() else ""
    shown = f"RAY_AUTH_MODE={mode}" if mode else "RAY_AUTH_MODE not set"
    if mode == "token" and not where:
        return Check(
            name="ray token",
            level=Level.WARN,
            found=f"{shown}, but no token in RAY_AUTH_TOKEN or {path}",
            advice="a local Ray makes one; for a cluster, copy its token there",
        )
    found = f"{shown}; " + (f"token in {where}" if where else "no token yet")
    return Check(name="ray token", level=Level.OK, found=found)
