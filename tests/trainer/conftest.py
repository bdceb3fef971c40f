"""A small world of facts and questions, as files and as a memory, and runs over it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ingest import ingest
from trainer.config import RunConfig
from trainer.settings import build

FIRST = ("ann", "bob", "carla", "dmitri", "eve", "farid", "gita", "hugo", "ines", "jörg", "kofi", "lena")
LAST = ("smith", "garcía", "o'hara", "nakamura", "petrov", "okafor", "lindqvist", "moreau")
WAYS = {
    "people/person/place_of_birth": ("where was {} born", "what is the birthplace of {}"),
    "people/person/profession": ("what does {} do for a living", "what is the profession of {}"),
    "people/person/spouse": ("who is {} married to", "who is the husband or wife of {}"),
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """facts.tsv, names.tsv, questions_train.tsv and questions_valid.tsv about 96 people; the valid ones are unseen."""
    folder = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(7)
    facts, names, asked = [], [], []
    for number, (first, last) in enumerate((first, last) for first in FIRST for last in LAST):
        person, name = f"p{number}", f"{first} {last}"
        names.append(f"{person}\t{name}")
        if number % 5 == 0:
            names.append(f"{person}\t{last} the {number}th")
        for relation, ways in WAYS.items():
            facts.append(f"{person}\t{relation}\tx{int(draw.integers(40))}")
            asked.extend((person, relation, f"x{number}", way.format(name)) for way in ways)
    for split, keep in (("train", lambda number: number % 7 != 0), ("valid", lambda number: number % 7 == 0)):
        rows = [row for number, row in enumerate(asked) if keep(number)]
        lines = ["subject_id\trelation\tobject_id\tquestion", *("\t".join(row) for row in rows)]
        (folder / f"questions_{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "facts.tsv").write_text("subject\trelation\tobject\n" + "\n".join(facts) + "\n", encoding="utf-8")
    (folder / "names.tsv").write_text("\n".join(names) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def ingest_world(world: Path) -> Callable[..., str]:
    """Ingest the world into a memory at a folder; returns its URL."""

    def make(url: Path, grouping: str = "relation") -> str:
        ingest([str(world / "facts.tsv")], str(url), names=[str(world / "names.tsv")], grouping=grouping)
        return str(url)

    return make


@pytest.fixture
def run_config(world: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """The settings of a run of seconds; keywords are sections with what to change in them."""

    def make(name: str = "run", at: str = "memory", seed: int = 0, **sections: dict[str, Any]) -> RunConfig:
        table: dict[str, Any] = {
            "run_dir": str(tmp_path / name),
            "seed": seed,
            "memory": {"url": str(tmp_path / at)},
            "data": {
                "questions": str(world),
                "facts": [str(world / "facts.tsv")],
                "names": [str(world / "names.tsv")],
            },
            "model": {"entity_dim": 32, "relation_dim": 32, "feature_bits": 12, "hidden": 32, "reader_hidden": 16},
            "train": {
                "epochs": 2,
                "batch_questions": 32,
                "k": 5,
                "refresh_every_steps": 6,
                "refresh_wait": "late",  # equal seeds, equal runs, also where steps take no time
                "checkpoint_every_refreshes": 1,
                "threads": 1,
            },
        }
        for section, changes in sections.items():
            table[section] = {**table[section], **changes}
        return build(RunConfig, table)

    return make
