"""Metrics: intervals, and the stream of them that a run writes to a file and to TensorBoard where it is installed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MetricsStream", "among", "gold_ranks", "last_loss", "of_mean", "read_metrics", "wilson"]

# Q questions, K facts retrieved per question, G gold facts of a question (padded with -1), X and Y ids in any order


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of right answers (Wilson 1927); (0, 1) when nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share, spread = right / asked, z * z / asked
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / asked + spread / (4 * asked)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def of_mean(values: NDArray[np.floating], z: float = 1.96) -> tuple[float, float]:
    """The normal 95 % interval of a mean of values in [0, 1]; (0, 1) for fewer than two."""
    if len(values) < 2:
        return 0.0, 1.0
    half = z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return max(0.0, float(values.mean()) - half), min(1.0, float(values.mean()) + half)


def among(ids_QX: NDArray[np.int64], others_QY: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the ids are in the same row of the others, bool [Q, X]; -1, which stands for no fact, never is.

    Sorts, rather than holding every id against every other: that would be [Q, X, Y], and K may be as large as a memory.
    """
    joined_QZ = np.concatenate([ids_QX, others_QY], axis=1)
    distinct, place_Z = np.unique(joined_QZ, return_inverse=True)
    # A number that is another one in every row, so that one lookup serves all rows.
    number_QZ = place_Z.reshape(joined_QZ.shape) + len(distinct) * np.arange(len(ids_QX))[:, None]
    found_QX: NDArray[np.bool_] = np.isin(number_QZ[:, : ids_QX.shape[1]], number_QZ[:, ids_QX.shape[1] :])
    return found_QX & (ids_QX >= 0)


def gold_ranks(ids_QK: NDArray[np.int64], gold_QG: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank, from 1, of the first gold fact among those retrieved; 0 where there is none. int64 [Q]."""
    is_gold_QK = among(ids_QK, gold_QG)
    return np.where(is_gold_QK.any(axis=1), is_gold_QK.argmax(axis=1) + 1, 0)


class MetricsStream:
    """One JSON object a line in metrics.jsonl, in the order of the steps.

    A run that is resumed at step s drops the lines of later steps first, so that the file reads as if it had never
    stopped. What may differ between two runs of one seed, such as wall-clock figures, is kept apart (`timing`).
    """

    def __init__(self, run_dir: Path, *, resume_step: int) -> None:
        self._path = run_dir / "metrics.jsonl"
        kept = [line for line in read_metrics(run_dir) if line["step"] <= resume_step]
        beside = self._path.with_suffix(".jsonl.new")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        beside.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._board = _tensorboard(run_dir, resume_step)

    def write(self, kind: str, step: int, values: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """kind: "train" or "refresh", see trainer.watch. Values and timing are numbers by name."""
        line = {
            "kind": kind,
            "step": step,
            **values,
            "timing": {name: round(value, 4) for name, value in timing.items()},
        }
        self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in {**values, **timing}.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that a crash cut short is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def last_loss(run_dir: Path) -> float:
    """The loss that a run wrote last; 0 before it wrote any."""
    losses = [line["loss"] for line in read_metrics(run_dir) if line["kind"] == "train"]
    return float(losses[-1]) if losses else 0.0


def _tensorboard(run_dir: Path, resume_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]  # comes with ray[train]
    except ImportError:
        return None
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)
