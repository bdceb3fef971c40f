"""`hmn bench kills`: what a command made is told by content, whatever lines a run's metrics end with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deploy.bench.kills import _digest
from memory_store import MemoryWriter


def _made(folder: Path, lines: list[dict[str, Any]], seed: int = 0) -> Path:
    with MemoryWriter(str(folder / "kb"), dim=4) as writer:
        vectors_ND = np.random.default_rng(seed).standard_normal((9, 4), dtype=np.float32)
        writer.append(pa.table({"fact_id": np.arange(9)}), vectors_ND)
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _train(step: int, loss: float, seconds: float = 0.1) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss, "timing": {"step_s": seconds}}


STALE = {"kind": "staleness", "step": 20, "drift": 0.1}


def test_a_run_is_what_it_learned_however_long_it_took(tmp_path: Path) -> None:
    first = _made(tmp_path / "a", [_train(10, 0.5), _train(20, 0.25), STALE])
    slower = _made(tmp_path / "b", [_train(10, 0.5, 9.0), STALE, _train(20, 0.25, 8.0)])
    other = _made(tmp_path / "c", [_train(10, 0.5), _train(20, 0.26), STALE])
    shorter = _made(tmp_path / "d", [_train(10, 0.5), STALE])
    assert _digest("train", first) == _digest("train", slower)
    assert len({_digest("train", made) for made in (first, other, shorter)}) == 3


def test_a_memory_is_what_its_parts_hold(tmp_path: Path) -> None:
    first, same, other = (_made(tmp_path / name, [], seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert _digest("embed", first) == _digest("embed", same) != _digest("embed", other)
    assert _digest("ingest", first) == _digest("ingest", other), "the facts are the same, embedded otherwise"
