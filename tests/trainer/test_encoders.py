"""Encoders: facts once each, several names in one vector, rows that learn, fingerprints that notice."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_store.errors import ConfigError, InputError, VersionMismatch
from memory_store.manifest import read_manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from pipeline.features import question_features, relation_features, text_features
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FactFeatures
from trainer.encoders.registry import ENCODERS, make_encoder
from trainer.encoders.settings import ModelConfig
from trainer.encoders.tables import FeatureTable, RowAdagrad, sum_rows
from trainer.refresh import FactEmbedder

SMALL = {"entity_dim": 64, "relation_dim": 16, "feature_bits": 14, "hidden": 16, "reader_hidden": 8}


def _facts(rows: list[tuple[list[str], str]]) -> pa.Table:
    """A facts table from (names of the subject, relation) pairs."""
    subjects = [[text_features([name])[0].tolist() for name in names] for names, _ in rows]
    relations = [relation_features([relation])[0].tolist() for _, relation in rows]
    struct = pa.struct([("subject", pa.list_(pa.list_(pa.uint32()))), ("relation", pa.list_(pa.uint32()))])
    features = [{"subject": subject, "relation": rel} for subject, rel in zip(subjects, relations, strict=True)]
    return pa.table({"fact_id": pa.array(range(len(rows)), pa.int64()), "features": pa.array(features, struct)})


def _encoder(name: str = "ngram", seed: int = 5) -> Encoder:
    return make_encoder(ModelConfig(encoder=name, **SMALL), seed)


ROWS = [
    (["Ann Smith"], "person/born"),
    (["Ann Smith"], "person/job"),
    (["Köln", "Cologne", "Colonia"], "place/country"),
    ([], "place/country"),
    (["Ann Smith"], "person/born"),
]


def test_subjects_and_relations_are_kept_once_each() -> None:
    features = FactFeatures.from_table(_facts(ROWS))
    assert len(features) == 5
    assert len(features.relations) == 3
    assert len(features.name_bounds) - 1 == 3
    assert features.subject_C[0] == features.subject_C[1] == features.subject_C[4]
    assert features.relation_C[2] == features.relation_C[3]
    names = np.diff(features.name_bounds)[features.subject_C]
    assert names.tolist() == [1, 1, 3, 0, 1]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_fact_has_the_same_vector_in_any_company(name: str) -> None:
    encoder = _encoder(name).eval()
    table = _facts(ROWS)
    with torch.no_grad():
        together = encoder.encode_facts(FactFeatures.from_table(table))
        for row in range(len(ROWS)):
            alone = encoder.encode_facts(FactFeatures.from_table(table.slice(row, 1)))
            torch.testing.assert_close(alone[0], together[row])
        chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
        torch.testing.assert_close(encoder.encode_facts(FactFeatures.from_table(chunked)), together)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_question_has_the_same_vector_in_any_company(name: str) -> None:
    encoder = _encoder(name)
    for head in (encoder.members[0].relation.reader.heads.gates, encoder.members[0].relation.reader.heads.summary):  # type: ignore[attr-defined]
        torch.nn.init.normal_(head.weight)  # a fresh reader answers neutrally, whatever it reads
    texts = ["where was ann smith born", "", "?", "a", "one very much longer question about the city of cologne"]
    together = encoder.ask(texts)
    assert together.shape == (5, encoder.dim)
    for row, text in enumerate(texts):
        torch.testing.assert_close(encoder.ask([text])[0], together[row], atol=1e-5, rtol=1e-5)


def test_any_one_of_several_names_matches_at_full_strength() -> None:
    encoder = _encoder().eval()
    rows = [(["Köln", "Cologne", "Colonia", "Keulen", "科隆", "Кёльн"], "r"), (["Cologne"], "r"), (["Boston"], "r")]
    with torch.no_grad():
        subjects = encoder.members[0].entity.encode_subjects(FactFeatures.from_table(_facts(rows)))
        names = encoder.members[0].entity.encode_subjects(
            FactFeatures.from_table(_facts([([one], "r") for one in rows[0][0]]))
        )
    several, single, other = subjects[FactFeatures.from_table(_facts(rows)).subject_C]
    strength = names @ several
    assert strength.min() > 0.8
    assert strength.max() < 1.2
    torch.testing.assert_close(single.norm(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert (names @ other).max() < 0.5


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_hidden_features_are_neither_read_nor_taught(name: str) -> None:
    encoder = _encoder(name)
    texts = ["where was ann smith born", "", "what is the capital of köln"]
    features = question_features(texts)
    tables = encoder.members[0].entity.vectors, encoder.members[0].relation.questions  # type: ignore[union-attr]
    for dropout, seed in ((0.5, 0), (0.5, 1), (1.0, 0)):
        kept_V = (torch.rand(len(features.values), generator=torch.Generator().manual_seed(seed)) >= dropout).numpy()
        query_BD = encoder.encode_questions(
            features, feature_dropout=dropout, generator=torch.Generator().manual_seed(seed)
        )
        assert bool(query_BD.isfinite().all())
        query_BD.square().sum().backward()
        for table in tables:
            assert isinstance(table, FeatureTable)
            taught = [lot.index_U for lot in table.take_gradients()]
            seen_U = np.unique(table.rows_of(features.values[kept_V]))
            np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.int64), *taught]), seen_U)
        for other in encoder.tables.values():
            other.take_gradients()
    encoder.eval()
    hiding = encoder.encode_questions(features, feature_dropout=0.5)
    assert torch.equal(hiding, encoder.encode_questions(features)), "an encoder that is asked hides nothing"


def test_facts_without_features_are_refused() -> None:
    table = _facts(ROWS[:1])
    with pytest.raises(InputError, match="hmn ingest"):
        FactFeatures.from_table(table.set_column(1, "features", pa.nulls(1, table["features"].type)))


def test_equal_seeds_give_equal_encoders_and_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    assert _encoder(seed=1).fingerprint() == _encoder(seed=1).fingerprint() != _encoder(seed=2).fingerprint()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_fingerprint_names_what_facts_depend_on_and_nothing_else() -> None:
    encoder = _encoder()
    before = encoder.fingerprint()
    with torch.no_grad():
        encoder.members[0].relation.bias.add_(1)
        encoder.members[0].relation.questions.weight_VW.add_(1)
    assert encoder.fingerprint() == before
    encoder.check_fingerprint(before)
    with torch.no_grad():
        encoder.members[0].relation.relations.weight_VW[0, 0] += 1e-3
    with pytest.raises(VersionMismatch, match="hmn embed"):
        encoder.check_fingerprint(before)


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ngram'"):
        make_encoder(ModelConfig(encoder="n-gram"), 0)


def test_fitting_gives_rare_features_more_weight(ingest_world: Callable[..., str], tmp_path: Path) -> None:
    storage = Storage(ingest_world(tmp_path / "memory"))
    encoder = _encoder()
    tables = scan_facts(storage, read_manifest(storage), columns=["fact_id", "features"])
    encoder.fit(FactFeatures.from_table(table) for table in tables)
    rows = encoder.members[0].entity.name_weights
    common, rare = (rows.weight_VW[rows.rows_of(text_features([text])[0])].mean() for text in ("ann", "the 45th"))
    assert 0 < common < rare <= 1
    known = question_features(["where was ann born"])
    flags = encoder.members[0].entity._is_known(known.values)
    assert 0 < flags.sum() < len(flags)


def test_lookups_of_one_row_are_summed() -> None:
    table = FeatureTable(torch.zeros(8, 3))
    optimizer = RowAdagrad({"t": table})
    first, second = (table.lookup(table.places_of(np.array(rows))) for rows in ([2, 5, 2], [5, 7]))
    (first.bags(np.array([0, 3])).sum() + 10 * second.bags(np.array([0, 2])).sum()).backward()
    index_U, total_UW = optimizer.take_gradients()["t"]
    assert index_U.tolist() == [2, 5, 7]
    assert total_UW[:, 0].tolist() == [2, 11, 10]
    assert optimizer.take_gradients() == {}


def test_features_that_share_a_row_under_one_multiplier_part_under_another() -> None:
    feature_X = np.random.default_rng(0).integers(2**32, size=2000, dtype=np.uint32)
    rows = [FeatureTable(torch.zeros(1024, 1), multiplier=odd).rows_of(feature_X) for odd in (2654435761, 2246822519)]
    assert all(row.min() >= 0 and row.max() < 1024 for row in rows)
    same = [row[:, None] == row[None, :] for row in rows]
    pairs = same[0].sum() - len(feature_X)
    assert ((same[0] & same[1]).sum() - len(feature_X)) / pairs < 0.02
    with pytest.raises(ValueError, match="odd"):
        FeatureTable(torch.zeros(4, 1), multiplier=2)


def test_the_vectors_of_members_stand_side_by_side_and_their_scores_add_up() -> None:
    encoder = make_encoder(ModelConfig(members=3, **SMALL), 5).eval()
    facts, questions = FactFeatures.from_table(_facts(ROWS)), question_features(["where was ann smith born"])
    with torch.no_grad():
        whole = encoder.encode_questions(questions) @ encoder.encode_facts(facts).T
        parts = [
            encoder.encode_questions(questions, member=member) @ encoder.encode_facts(facts, member=member).T
            for member in range(3)
        ]
    assert encoder.dim == 3 * encoder.dim_of(1) == encoder.dim_of(None)
    torch.testing.assert_close(whole, sum(parts))
    assert not torch.allclose(parts[0], parts[1])


def test_evaluation_reads_the_table_itself() -> None:
    table = FeatureTable(torch.randn(8, 3)).eval()
    looked_up = table.lookup(table.places_of(np.array([1, 1])))
    assert looked_up.rows_UW is table.weight_VW
    torch.testing.assert_close(looked_up.bags(np.array([0, 2])), 2 * table.weight_VW[1:2])


@given(
    row_X=st.lists(st.integers(0, 7), min_size=1, max_size=20),
    asked_again_X=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    shares=st.integers(1, 3),
    data=st.data(),
)
def test_bags_learn_what_torch_would_have_them_learn(
    row_X: list[int], asked_again_X: list[int], shares: int, data: st.DataObject
) -> None:
    """Lookups that overlap, whole tables, parts of features, several shares: all as plain autograd and Adagrad."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(row_X)), max_size=3)))
    offsets = np.array([0, *cuts, len(row_X)])
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, len(row_X) - 1), min_size=1))))
    rng = torch.Generator().manual_seed(0)
    weight_VW, weight_X = torch.randn(8, 3, generator=rng), torch.rand(len(row_X), generator=rng)
    table, plain_VW = FeatureTable(weight_VW.clone()), weight_VW.clone().requires_grad_()
    learned_X, plain_X = weight_X.clone().requires_grad_(), weight_X.clone().requires_grad_()

    first = table.lookup(table.places_of(np.array(row_X)))
    second = table.lookup(table.places_of(np.array(asked_again_X)))
    some = first.only(wanted).bags(np.array([0, len(wanted)]))
    (
        first.bags(offsets, learned_X).square().sum()
        + some.sum()
        + second.bags(np.array([0, len(asked_again_X)])).sum()
    ).backward()
    rows_XW = plain_VW[row_X] * plain_X[:, None]
    bags = [rows_XW[start:stop].sum(dim=0) for start, stop in pairwise(offsets.tolist())]
    (torch.stack(bags).square().sum() + plain_VW[row_X][wanted].sum() + plain_VW[asked_again_X].sum()).backward()
    assert plain_VW.grad is not None
    torch.testing.assert_close(learned_X.grad, plain_X.grad)

    optimizer = RowAdagrad({"t": table}, start=0.5)
    for update in reversed(optimizer.updates(0.1, shares=shares)):
        update()
    sum_V = 0.5 + plain_VW.grad.square().mean(dim=1)
    torch.testing.assert_close(optimizer.accumulator["t"], torch.where(plain_VW.grad.any(dim=1), sum_V, 0.5))
    torch.testing.assert_close(table.weight_VW, weight_VW - 0.1 * plain_VW.grad * (sum_V + 1e-16).rsqrt()[:, None])


def test_row_adagrad_moves_touched_rows_as_the_formula_says() -> None:
    table = FeatureTable(torch.zeros(4, 2))
    optimizer = RowAdagrad({"t": table})
    gradient = torch.tensor([[3.0, 4.0]])
    for _ in range(2):
        optimizer.step(0.1, {"t": (torch.tensor([2]), gradient)})
    mean_square = 12.5
    expected = -0.1 * gradient[0] * (mean_square**-0.5 + (2 * mean_square) ** -0.5)
    torch.testing.assert_close(table.weight_VW[2], expected)
    assert table.weight_VW[[0, 1, 3]].abs().sum() == 0


def test_rows_of_several_workers_are_summed_in_order() -> None:
    index, total = sum_rows(
        [torch.tensor([1, 4]), torch.tensor([4]), torch.tensor([0])],
        [torch.ones(2, 2), torch.full((1, 2), 5.0), torch.full((1, 2), 2.0)],
    )
    assert index.tolist() == [0, 1, 4]
    assert total[:, 0].tolist() == [2, 1, 6]


def test_a_fact_that_has_other_names_under_its_id_is_embedded_anew() -> None:
    embedder = FactEmbedder(_encoder())
    before, after = (
        _facts([(["anne"], "born"), (["bob"], "born")]),
        _facts([(["anne", "ann"], "born"), (["bob"], "born")]),
    )
    assert before["fact_id"].equals(after["fact_id"])
    first_ND, second_ND = embedder(before), embedder(after)
    assert np.abs(first_ND[0] - second_ND[0]).max() > 0.01
    np.testing.assert_allclose(first_ND[1], second_ND[1], atol=1e-5)
    np.testing.assert_array_equal(embedder(before), first_ND)  # remembered
    np.testing.assert_allclose(embedder(after.slice(1)), second_ND[1:], atol=1e-5)


def test_features_of_parts_that_others_replaced_make_room_for_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = FactEmbedder(_encoder(), remember=2)
    old, new = _facts([(["anne"], "born"), (["bob"], "born")]), _facts([(["eve"], "born"), (["bob"], "born")])
    for facts in (old, new):
        embedder(facts)
        embedder.forget_unused()
    expected = embedder(new)
    embedder.forget_unused()
    monkeypatch.delattr(FactFeatures, "from_table")  # nothing is read anew
    np.testing.assert_array_equal(embedder(new), expected)
    embedder.forget_unused()
    embedder.forget_unused()  # an embedding that found all done uses nothing, and costs nothing
    np.testing.assert_array_equal(embedder(new), expected)
