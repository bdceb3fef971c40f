"""A run is one TOML file: what memory, what data, what model, how it is trained."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from memory_store.errors import ConfigError, StorageFailed
from memory_store.mips.base import parse_index
from memory_store.mips.registry import INDEXES
from pipeline.sources.builtin import is_builtin, parse_builtin
from trainer.encoders.registry import ENCODERS
from trainer.encoders.settings import ModelConfig
from trainer.extra import ExtraRule
from trainer.settings import at_least, between, build, dump_toml, one_of

__all__ = ["DataConfig", "MemoryConfig", "ModelConfig", "RunConfig", "TrainConfig", "load_config", "save_config"]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """[memory]: where the facts are and how they are searched.

    url: any fsspec URL. index: as `hmn indexes` lists them. backend: "local" (in-process) or "ray" (actors). replicas:
    copies of each shard, so that none is missed when it dies. recall_share: share of the questions that an approximate
    index answers once more, exactly, so that its recall is known. target_recall: the recall that it keeps by its
    effort; 0 leaves its effort as it is.
    """

    url: str
    index: str = "exact"
    backend: Literal["local", "ray"] = "local"
    shards: int = 1
    replicas: int = 1
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    recall_share: float = 0.01
    target_recall: float = 0.0

    def __post_init__(self) -> None:
        at_least("memory.shards", self.shards, 1)
        at_least("memory.replicas", self.replicas, 1)
        between("memory.recall_share", self.recall_share, 0, 1.0001)
        between("memory.target_recall", self.target_recall, 0, 1)
        if self.target_recall and not self.recall_share:
            raise ConfigError(
                f"expected memory.recall_share above 0 with memory.target_recall = {self.target_recall:g}, found 0"
            )
        parse_index(self.index, INDEXES)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[data]: what is ingested (as `hmn ingest` takes it) and asked (as pipeline.sources.questions reads it)."""

    questions: str
    facts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    grouping: Literal["relation", "triple"] = "relation"

    def __post_init__(self) -> None:
        for source in (self.questions, *self.facts):
            if is_builtin(source):
                parse_builtin(source)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """[train]: how the model learns.

    epochs: passes over the training questions. batch_questions: B. k, candidates: as KMipsAttention takes them.
    table_rate: Adagrad's rate for feature tables; network_rate: Adam's for everything else but the network that
    reads words, which has reader_rate; all decay linearly to 0.
    table_damping: the size of a question's gradient, per element of a row, below which a row hardly moves.
    feature_dropout: share of a question's features hidden in training. swap_subjects: share of the questions whose
    subject is replaced by another one of the same relation. refresh_every_steps: how often the memory is embedded
    again. refresh_drift, refresh_recall: it is also embedded again as soon as a sample of its vectors is further than
    that from what the model makes of the facts now (share of their norm), or holds less than that of the facts that
    the model would retrieve now; looked at every refresh_check_steps, 0 for never. refresh_wait: what training waits
    for, as it goes on while a copy of the model embeds the memory. "never": the result is taken over refresh_lag_steps
    after it was asked for (0: after refresh_every_steps), or so many steps later again if it is not ready by then;
    equal seeds give equal runs as long as none is late. "late": one that is not ready by then is waited for, so that
    they do at any speed. "always": every one is waited for at once, without a copy.
    checkpoint_every_refreshes: a checkpoint is written with every so many scheduled ones. workers: data-parallel
    processes of Ray Train; 1 trains in this process. threads: torch threads. max_steps: stop early, 0 for no limit.
    extra: facts that join the candidates at random, against the bias of an approximate search: "uniform" ones, or whole
    "clusters" of the stored vectors; extra_facts: how many, on average for clusters. correction: "importance" weighs
    them in the loss by the chance that they had. sample_questions: asked at every refresh, for the metrics.
    """

    epochs: int = 4
    batch_questions: int = 256
    k: int = 10
    candidates: Literal["union", "per_question", "full"] = "union"
    table_rate: float = 0.03
    table_damping: float = 0.0
    network_rate: float = 0.003
    reader_rate: float = 0.003
    feature_dropout: float = 0.2
    swap_subjects: float = 0.8
    refresh_every_steps: int = 50
    refresh_drift: float = 0.0
    refresh_recall: float = 0.0
    refresh_check_steps: int = 10
    refresh_wait: Literal["never", "late", "always"] = "never"
    refresh_lag_steps: int = 0
    checkpoint_every_refreshes: int = 5
    workers: int = 1
    threads: int = 2
    max_steps: int = 0
    extra: ExtraRule = "none"
    extra_facts: int = 1000
    correction: Literal["none", "importance"] = "none"
    sample_questions: int = 128

    def __post_init__(self) -> None:
        at_least("train.epochs", self.epochs, 1)
        at_least("train.batch_questions", self.batch_questions, 1)
        at_least("train.k", self.k, 1)
        at_least("train.table_rate", self.table_rate, 0)
        at_least("train.table_damping", self.table_damping, 0)
        at_least("train.network_rate", self.network_rate, 0)
        at_least("train.reader_rate", self.reader_rate, 0)
        between("train.feature_dropout", self.feature_dropout, 0, 1)
        between("train.swap_subjects", self.swap_subjects, 0, 1.0001)
        at_least("train.refresh_every_steps", self.refresh_every_steps, 1)
        at_least("train.refresh_drift", self.refresh_drift, 0)
        between("train.refresh_recall", self.refresh_recall, 0, 1)
        at_least("train.refresh_check_steps", self.refresh_check_steps, 1)
        between("train.refresh_lag_steps", self.refresh_lag_steps, 0, self.refresh_every_steps + 1)
        if self.refresh_lag_steps and self.refresh_wait == "always":
            raise ConfigError(
                f'expected train.refresh_wait = "never" or "late" with train.refresh_lag_steps = '
                f'{self.refresh_lag_steps}, found "always"; leave one of them out'
            )
        at_least("train.checkpoint_every_refreshes", self.checkpoint_every_refreshes, 1)
        at_least("train.workers", self.workers, 1)
        at_least("train.threads", self.threads, 1)
        at_least("train.max_steps", self.max_steps, 0)
        at_least("train.extra_facts", self.extra_facts, 1)
        at_least("train.sample_questions", self.sample_questions, 1)
        if self.extra != "none" and self.candidates == "full":
            raise ConfigError(f'expected train.extra "none" with candidates "full", found {self.extra!r}; all are read')
        if self.correction != "none" and self.extra == "none":
            raise ConfigError('expected train.extra "uniform" or "clusters" with a correction, found "none"')


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. run_dir: for config.toml, metrics.jsonl and checkpoints; seed: everything random follows from it."""

    run_dir: str
    memory: MemoryConfig
    data: DataConfig
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        one_of("model.encoder", self.model.encoder, ENCODERS)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from a TOML file.

    overrides: "section.key=value" texts that replace settings of the file; a value that is not TOML is taken as text.
    Raises ConfigError for a missing or broken file, an unknown key (with the nearest known one) or a bad value.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"expected a run's TOML file at {path}, found none") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror or error}") from error
    for override in overrides:
        _override(table, override)
    return build(RunConfig, table)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the run as TOML that `load_config` reads back as an equal one."""
    Path(path).write_text(dump_toml(config), encoding="utf-8")


def _override(table: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"expected a setting like train.epochs=8, found {override!r}")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = name.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"expected a setting like train.epochs=8, found {override!r}: {section!r} is no section")
    table[key] = value
