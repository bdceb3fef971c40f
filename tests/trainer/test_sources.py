"""Where a step reads facts: held in the process or fetched from the shards, the features are the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_store import Memory, open_memory
from pipeline.embed import embed
from pipeline.features import relation_features, text_features
from trainer.config import RunConfig
from trainer.encoders.facts import FEATURE_COLUMNS, FactFeatures
from trainer.encoders.registry import make_encoder
from trainer.refresh import FactEmbedder
from trainer.sources import EncodedFacts, HeldFeatures

NAMES = ["Ann Smith", "ann", "Köln", "Cologne", "x", ""]
RELATIONS = ["person/born", "person/job", ""]
rows = st.lists(st.tuples(st.lists(st.sampled_from(NAMES), max_size=3), st.sampled_from(RELATIONS)), max_size=12)


def _facts(rows: list[tuple[list[str], str]]) -> pa.Table:
    struct = pa.struct([("subject", pa.list_(pa.list_(pa.uint32()))), ("relation", pa.list_(pa.uint32()))])
    features = [
        {
            "subject": [text_features([name])[0].tolist() for name in names],
            "relation": relation_features([relation])[0].tolist(),
        }
        for names, relation in rows
    ]
    return pa.table({"fact_id": pa.array(range(len(rows)), pa.int64()), "features": pa.array(features, struct)})


def _assert_same(found: FactFeatures, expected: FactFeatures) -> None:
    for name in ("name_bounds", "subject_C", "relation_C"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("names", "relations"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(one.offsets, other.offsets, err_msg=name)
        np.testing.assert_array_equal(one.values, other.values, err_msg=name)


@given(rows, st.data())
def test_some_of_the_features_are_those_that_some_of_the_facts_have(
    rows: list[tuple[list[str], str]], data: st.DataObject
) -> None:
    table = _facts(rows)
    wanted = np.array(data.draw(st.lists(st.sampled_from(range(len(rows))))) if rows else [], dtype=np.int64)
    _assert_same(FactFeatures.from_table(table).take(wanted), FactFeatures.from_table(table.take(pa.array(wanted))))


@given(st.lists(rows, max_size=4))
def test_pieces_that_are_joined_are_what_is_read_at_once(pieces: list[list[tuple[list[str], str]]]) -> None:
    joined = FactFeatures.join([FactFeatures.from_table(_facts(piece)) for piece in pieces])
    _assert_same(joined, FactFeatures.from_table(_facts([row for piece in pieces for row in piece])))


@pytest.fixture
def memory_of_world(
    ingest_world: Callable[..., str], run_config: Callable[..., RunConfig], tmp_path: Path
) -> tuple[str, Any]:
    """(the URL of an embedded memory, the encoder)."""
    config = run_config()
    url = ingest_world(tmp_path / "memory")
    encoder = make_encoder(config.model, config.seed).eval()
    embedder = FactEmbedder(encoder)
    embed(url, lambda: embedder, fingerprint=encoder.fingerprint(), dim=encoder.dim)
    return url, encoder


def _fetched(memory: Memory, ids_C: np.ndarray) -> FactFeatures:
    return FactFeatures.from_table(memory.fetch(ids_C, FEATURE_COLUMNS))


def test_held_features_are_those_that_the_shards_answer_with(memory_of_world: tuple[str, Any]) -> None:
    url, encoder = memory_of_world
    with open_memory(url, threads=1) as memory, torch.no_grad():
        held, too_large = HeldFeatures(memory), HeldFeatures(memory, most_bytes=0)
        all_ids_N = HeldFeatures(memory).all_ids()
        assert len(all_ids_N) == memory.manifest.fact_count
        some_ids_C = np.sort(np.random.default_rng(0).choice(all_ids_N, 40, replace=False))
        found = held.of(some_ids_C)
        assert found is not None
        _assert_same(found, _fetched(memory, some_ids_C))
        assert too_large.of(some_ids_C) is None
        _assert_same(too_large.of(too_large.all_ids()) or _fail(), _fetched(memory, all_ids_N))
        assert held.of(np.array([-5])) is None, "who asks for what is not there is told so by the shards"
        sources = (EncodedFacts(memory, encoder, held=one) for one in (held, HeldFeatures(memory, most_bytes=0)))
        first_CD, second_CD = (source.encode(some_ids_C) for source in sources)
        assert torch.equal(first_CD, second_CD)


def test_held_features_follow_the_facts(memory_of_world: tuple[str, Any]) -> None:
    url, _ = memory_of_world
    with open_memory(url, threads=1) as memory:
        held = HeldFeatures(memory)
        all_ids_N = held.all_ids()
        assert held.all_ids() is all_ids_N
        memory.delete(all_ids_N[:1])
        np.testing.assert_array_equal(held.all_ids(), all_ids_N[1:])
        assert held.of(all_ids_N[:1]) is None
        _assert_same(held.of(all_ids_N[1:9]) or _fail(), _fetched(memory, all_ids_N[1:9]))
        memory.delete(all_ids_N[1:])
        assert held.of(all_ids_N[:1]) is None, "an empty memory holds none either"


def _fail() -> FactFeatures:
    raise AssertionError("expected features, found none")
