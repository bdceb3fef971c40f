"""Writes a run's report beside its other files."""

import json
from pathlib import Path

from memory_store.storage import Storage
from trainer.report.page import render
from trainer.report.record import read_run

__all__ = ["DATA", "PAGE", "write_report"]

PAGE, DATA = "report.html", "report.json"


def write_report(run_dir: str | Path) -> Path:
    """Make <run>/report.html, and report.json with the data behind it, of what the run has recorded so far.

    Returns the path of the page. Raises ConfigError where there is no run, CorruptFile, StorageFailed.
    """
    run = read_run(run_dir)
    storage = Storage(str(run_dir))
    storage.write_atomic(DATA, json.dumps(run.to_json(), indent=1, ensure_ascii=False).encode() + b"\n")
    storage.write_atomic(PAGE, render(run).encode())
    return Path(run_dir) / PAGE
