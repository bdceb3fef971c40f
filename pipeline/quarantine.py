"""Rejected rows where a person finds them: file, line, the raw text and the reason, one JSON object per line."""

import json
from collections.abc import Iterable
from typing import Any, BinaryIO

from memory_store.storage import Storage

__all__ = ["QUARANTINE", "write_quarantine"]

QUARANTINE = "quarantine"


def write_quarantine(storage: Storage, name: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Write (file, {line, raw, reason}) in their order as quarantine/<name>.jsonl, and return that path."""
    path = f"{QUARANTINE}/{name}.jsonl"

    def fill(file: BinaryIO) -> None:
        for source, row in rows:
            line = {"file": source, "line": row["line"], "reason": row["reason"], "raw": row["raw"]}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    storage.write_atomic(path, fill)
    return path
