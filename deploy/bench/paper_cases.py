"""The cases of `hmn bench paper`: what Chandar et al. (2016) compared, as settings of a run, the most telling first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from memory_store.errors import InputError
from trainer.config import RunConfig
from trainer.settings import build, one_of

__all__ = ["APPROXIMATE", "CASES", "REFERENCE", "Case", "Source", "chosen_cases", "run_config", "settings_key"]

Group = Literal["softmax", "search", "bias", "encoder"]

APPROXIMATE = ("split", "ivf", "pca_tree", "wta_hash")
"""The paper's three beside `split`, with the defaults of the project; the reference is tested with each of them."""

POOR = "ivf?nprobe=1"
"""An index that misses much: what is added at random can only help where the search is biased."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run to train. train, model: settings other than the common ones. tests: indexes that it is tested with."""

    name: str
    group: Group
    shown: str
    index: str = "exact"
    tests: tuple[str, ...] = ("exact",)
    train: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


REFERENCE = "k10"


def _bias(name: str, shown: str, **train: Any) -> Case:
    return Case(name=name, group="bias", shown=shown, index=POOR, tests=("exact", POOR), train=train)


def _search(index: str, name: str = "", shown: str = "") -> Case:
    return Case(name=name or index, group="search", shown=shown or index, index=index, tests=("exact", index))


def _softmax(k: int, tests: tuple[str, ...] = ("exact",)) -> Case:
    return Case(name=f"k{k}", group="softmax", shown=f"K = {k:,}", tests=tests, train={"k": k})


_FULL = {"candidates": "full"}

CASES: Sequence[Case] = (
    _softmax(10, ("exact", *APPROXIMATE, POOR)),
    Case(name="full", group="softmax", shown="full softmax", train=_FULL),
    _search("split"),
    _search("ivf"),
    _search("ivf?nprobe=128", "ivf-128", "ivf, 128 clusters"),
    _search("pca_tree"),
    _search("wta_hash"),
    _bias("poor", "nothing added"),
    _bias("uniform", "uniform facts", extra="uniform"),
    _bias("uniform-corrected", "uniform facts, corrected", extra="uniform", correction="importance"),
    _bias("clusters", "sampled clusters", extra="clusters"),
    _bias("clusters-corrected", "sampled clusters, corrected", extra="clusters", correction="importance"),
    _softmax(50),
    _softmax(100),
    Case(name="gru-k10", group="encoder", shown="gru, K = 10", model={"encoder": "gru"}),
    _softmax(500),
    _softmax(1000),
    Case(name="gru-full", group="encoder", shown="gru, full softmax", model={"encoder": "gru"}, train=_FULL),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Facts, names and questions, as [data] of a run takes them. name: for people."""

    name: str
    questions: str
    facts: tuple[str, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: Path | None) -> "Source":
        """SimpleQuestions in a folder, or GeoNames where none is named. Raises InputError for a missing file."""
        if data is None:
            return cls(name="GeoNames", questions="builtin:geonames", facts=("builtin:geonames",))
        facts, names = data / "freebase-SQ.txt.gz", data / "names.tsv.gz"
        for needed in (facts, names):
            if not needed.is_file():
                raise InputError(f"expected {needed.name} in {data}, found no such file; name the folder with --data")
        return cls(
            name="SimpleQuestions, memory freebase-SQ", questions=str(data), facts=(str(facts),), names=(str(names),)
        )


def chosen_cases(only: Sequence[str]) -> list[Case]:
    """Those named, by name or group, in the order of CASES; all where none is named."""
    known = {case.name for case in CASES} | {case.group for case in CASES}
    for name in only:
        one_of("--only", name, known)
    return [case for case in CASES if not only or case.name in only or case.group in only]


def run_config(case: Case, source: Source, folder: Path, *, seed: int, steps: int, threads: int) -> RunConfig:
    """The run of a case. One member and small vectors: what is compared is the reading, not the encoder."""
    return build(
        RunConfig,
        {
            "run_dir": str(folder / "run"),
            "seed": seed,
            "memory": {"url": str(folder / "memory"), "index": case.index},
            "data": {"questions": source.questions, "facts": source.facts, "names": source.names},
            "model": {
                "entity_dim": 64,
                "relation_dim": 64,
                "feature_bits": 18,
                "entity_scale": 20.0,
                "unknown_weight": 0.0,
                **case.model,
            },
            "train": {
                "epochs": 1_000,
                "max_steps": steps,
                "batch_questions": 128,
                "reader_rate": 0.001,
                "feature_dropout": 0.3,
                "refresh_every_steps": max(steps // 10, 1),
                "refresh_wait": "always",
                "checkpoint_every_refreshes": 1_000,
                "sample_questions": 1_000,
                "threads": threads,
                **case.train,
            },
        },
    )


def settings_key(case: Case, source: Source, *, steps: int) -> str:
    """Names everything that a result depends on but its seed: results of other settings are not mixed with these."""
    config = run_config(case, source, Path("-"), seed=0, steps=steps, threads=1)
    text = repr((config.memory.index, config.model, config.train, source.name, case.tests))
    return xxhash.xxh3_64_hexdigest(text.encode())
