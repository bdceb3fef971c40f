"""What a run was trained with: versions of software, and the machine."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from memory_store.storage import Storage

__all__ = ["ENVIRONMENT", "record_environment"]

ENVIRONMENT = "environment.json"
_PACKAGES = ("hmn", "torch", "numpy", "pyarrow", "ray", "faiss-cpu")


def record_environment(run_dir: Path) -> dict[str, Any]:
    """Write <run>/environment.json; a run that is resumed names what it goes on with."""
    found = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    Storage(str(run_dir)).write_atomic(ENVIRONMENT, json.dumps(found, indent=1).encode() + b"\n")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
