"""The data of a report: everything that a run directory says about its run, as plain JSON values."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_store.errors import ConfigError, CorruptFile
from memory_store.storage import redact
from trainer.environment import ENVIRONMENT
from trainer.metrics import read_metrics

__all__ = ["SPLITS", "Line", "RunRecord", "Stage", "read_run"]

FORMAT_VERSION = 1
SPLITS = ("valid", "test", "train")  # in the order in which a headline prefers them
_EXAMPLES = 24

Line = Mapping[str, Any]
"""Of metrics.jsonl, without the values that are no finite number, as those of a run that diverged."""

_STAGES = {
    "batch": "Make the batch",
    "encode": "Encode the questions",
    "search": "Search the memory",
    "forward": "Candidates, softmax, loss",
    "backward": "Gradients",
    "update": "Update the weights",
    "other": "Rest of the step",
    "refresh": "Embed the memory again",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Seconds that a run spent in one stage of its work."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run. Whatever it did not record is empty or None; credentials in URLs are masked.

    config: settings by dotted name. checkpoint: the newest, as CheckpointInfo has it. train, refreshes: the lines of
    metrics.jsonl of that kind (trainer.watch says what is in them). evaluations: by split, as `hmn evaluate` wrote
    them, with some of the right and wrong answers.
    """

    format_version: int
    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    checkpoint: Mapping[str, Any] | None
    train: Sequence[Line]
    refreshes: Sequence[Line]
    stages: Sequence[Stage]
    evaluations: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def __repr__(self) -> str:
        evaluated = ", ".join(self.evaluations) or "none"
        return f"RunRecord({self.name!r}, steps={self.steps:,}, evaluations={evaluated})"

    @property
    def headline(self) -> tuple[str, Mapping[str, Any]] | None:
        """(split, evaluation) that a summary shows."""
        return next(((split, self.evaluations[split]) for split in SPLITS if split in self.evaluations), None)

    @property
    def facts(self) -> int | None:
        """Facts of the memory at the last refresh."""
        return int(self.refreshes[-1]["facts"]) if self.refreshes else None

    @property
    def steps(self) -> int:
        """The last step that left a line."""
        return int(max([line["step"] for line in (*self.train, *self.refreshes)], default=0))

    @property
    def seconds(self) -> float:
        """Spent in all stages together: steps and refreshes, without the start, an ingest, checkpoints, the report."""
        return sum(stage.seconds for stage in self.stages)

    def seconds_since(self, step: int) -> float:
        """The same of what came after this step."""
        train = [line for line in self.train if line["step"] > step]
        refreshes = [line for line in self.refreshes if line["step"] > step or step == 0]
        return sum(stage.seconds for stage in _stages(train, refreshes, since=step))


def read_run(run_dir: str | Path) -> RunRecord:
    """Read what a run left behind, whether it ended or not.

    Raises ConfigError for a directory that holds no run, CorruptFile for a file that is no JSON or TOML.
    """
    folder = Path(run_dir)
    saved = folder / "config.toml"
    if not saved.is_file():
        raise ConfigError(f"expected a run with its config.toml in {run_dir}, found none; name the folder of a run")
    try:
        config = _flat(tomllib.loads(saved.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{saved}: expected the settings of a run as TOML, found {error}; restore the file") from None
    lines = [_finite(line) for line in read_metrics(folder) if isinstance(line, dict) and "step" in line]
    train = [line for line in lines if line.get("kind") == "train"]
    refreshes = [line for line in lines if line.get("kind") == "refresh"]
    evaluations = {split: _json(folder / f"evaluation-{split}.json") for split in SPLITS}
    checkpoint = _json(folder / "checkpoints" / "latest.json")
    return RunRecord(
        format_version=FORMAT_VERSION,
        name=folder.resolve().name,
        config=config,
        environment=_json(folder / ENVIRONMENT) or {},
        checkpoint=_masked(checkpoint) if checkpoint else None,
        train=train,
        refreshes=refreshes,
        stages=_stages(train, refreshes),
        evaluations={split: _with_some_answers(found) for split, found in evaluations.items() if found},
    )


def _stages(train: Sequence[Line], refreshes: Sequence[Line], since: int = 0) -> list[Stage]:
    """A line has the mean of the steps since the line before it."""
    spent_s = dict.fromkeys(_STAGES, 0.0)
    before = since
    for line in train:
        steps, before = line["step"] - before, line["step"]
        timing = {name.removesuffix("_s"): value for name, value in line.get("timing", {}).items()}
        known = {name: value for name, value in timing.items() if name in _STAGES}
        rest = timing.get("step", 0.0) - sum(value for name, value in known.items() if name != "batch")
        for name, value in {**known, "other": max(0.0, rest)}.items():
            spent_s[name] += steps * value
    spent_s["refresh"] = sum(line.get("timing", {}).get("refresh_s", 0.0) for line in refreshes)
    total_s = sum(spent_s.values())
    return [Stage(name=_STAGES[name], seconds=value) for name, value in spent_s.items() if value > 1e-4 * total_s]


def _with_some_answers(found: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation with answers from all over it; the file it comes from has every wrong one."""
    some = {kind: _spread(found.get(kind, ())) for kind in ("wrong", "right")}
    return {**found, **some, "wrong_in_all": len(found.get("wrong", ()))}


def _finite(line: Line) -> dict[str, Any]:
    return {
        name: _finite(value) if isinstance(value, Mapping) else value
        for name, value in line.items()
        if not isinstance(value, float) or math.isfinite(value)
    }


def _spread(items: Sequence[Any]) -> list[Any]:
    if len(items) <= _EXAMPLES:
        return list(items)
    return [items[at * len(items) // _EXAMPLES] for at in range(_EXAMPLES)]


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path}: expected JSON, found {error}; delete it or restore it") from None
    if not isinstance(content, dict):
        raise CorruptFile(f"{path}: expected a JSON object, found {type(content).__name__}; delete it or restore it")
    return content


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _masked(value)
    return flat


def _masked(value: Any) -> Any:
    """Without the credentials that URLs may carry."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value
