"""K-MIPS attention: with K >= N it is the full softmax, gradients included; selection carries none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from memory_store import MemoryWriter, open_memory
from memory_store.errors import ConfigError, DimensionMismatch, HmnError, InputError, InvalidVectors
from trainer.attention import KMipsAttention, TensorFacts, pad_ids
from trainer.loss import reading_loss

# B questions, D dimension, N facts


def _problem(batch: int = 4, dim: int = 6, facts: int = 9) -> tuple[Tensor, Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(3)
    query_BD = torch.randn(batch, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    fact_ND = torch.randn(facts, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    gold = pad_ids([np.array([0]), np.array([3, 5]), np.array([8]), np.array([1, 2, 7])])
    return query_BD, fact_ND, gold


def _gradients(attention: KMipsAttention, query_BD: Tensor, fact_ND: Tensor, gold: np.ndarray) -> tuple[Tensor, ...]:
    reading = attention(query_BD, fact_ND, gold)
    assert reading.gold_BC is not None
    value = reading_loss(reading.logits_BC, reading.gold_BC) + reading.read_BD.square().sum()
    return (value, *torch.autograd.grad(value, (query_BD, fact_ND)))


@pytest.mark.parametrize("candidates", ["union", "per_question"])
@pytest.mark.parametrize("k", [9, 20])
def test_with_k_of_at_least_n_value_and_gradients_are_those_of_the_full_softmax(candidates: str, k: int) -> None:
    query_BD, fact_ND, gold = _problem()
    full = _gradients(KMipsAttention(k, "full"), query_BD, fact_ND, gold)
    found = _gradients(KMipsAttention(k, candidates), query_BD, fact_ND, gold)
    for expected, value in zip(full, found, strict=True):
        torch.testing.assert_close(value, expected)


def test_the_full_softmax_is_the_one_written_out() -> None:
    query_BD, fact_ND, gold = _problem()
    reading = KMipsAttention(2, "full")(query_BD, fact_ND, gold)
    weights_BN = torch.softmax(query_BD @ fact_ND.T, dim=1)
    torch.testing.assert_close(reading.weights_BC, weights_BN)
    torch.testing.assert_close(reading.read_BD, weights_BN @ fact_ND)


def test_gradients_agree_with_finite_differences() -> None:
    query_BD, fact_ND, gold = _problem(facts=9)
    attention = KMipsAttention(2, "union")

    def value(query_BD: Tensor, fact_ND: Tensor) -> Tensor:
        reading = attention(query_BD, fact_ND, gold)
        assert reading.gold_BC is not None
        return reading_loss(reading.logits_BC, reading.gold_BC) + reading.read_BD.square().sum()

    assert torch.autograd.gradcheck(value, (query_BD, fact_ND))


def test_only_candidates_get_a_gradient() -> None:
    query_BD, fact_ND, gold = _problem()
    attention = KMipsAttention(1, "union")
    reading = attention(query_BD, fact_ND, gold[:, :1])
    assert reading.gold_BC is not None
    reading_loss(reading.logits_BC, reading.gold_BC).backward()
    assert fact_ND.grad is not None
    touched = np.flatnonzero(fact_ND.grad.abs().sum(dim=1).numpy())
    assert touched.tolist() == reading.fact_ids_C.tolist()
    assert len(touched) < len(fact_ND)


def test_union_shares_all_candidates_and_per_question_reads_its_own_only() -> None:
    query_BD, fact_ND, gold = _problem()
    union = KMipsAttention(2, "union")(query_BD, fact_ND, gold)
    own = KMipsAttention(2, "per_question")(query_BD, fact_ND, gold)
    assert (union.softmax_size_B == len(union.fact_ids_C)).all()
    retrieved = TensorFacts(fact_ND).search(query_BD.detach().numpy(), 2)
    for row in range(len(query_BD)):
        readable = set(retrieved[row]) | set(gold[row][gold[row] >= 0])
        weighed = own.fact_ids_C[own.weights_BC[row].detach().numpy() > 0]
        assert set(weighed) == readable
        assert own.softmax_size_B[row] == len(readable)


def test_gold_facts_join_in_training_only() -> None:
    query_BD, fact_ND, gold = _problem()
    attention = KMipsAttention(1, "per_question")
    assert attention(query_BD, fact_ND, gold).softmax_size_B.max() > 1
    assert (attention.eval()(query_BD, fact_ND, gold).softmax_size_B == 1).all()


def test_several_gold_facts_share_the_target_mass() -> None:
    logits_BC = torch.tensor([[2.0, 0.0, 1.0]])
    one = reading_loss(logits_BC, torch.tensor([[True, False, False]]))
    two = reading_loss(logits_BC, torch.tensor([[True, False, True]]))
    log_weights = torch.log_softmax(logits_BC, dim=1)[0]
    torch.testing.assert_close(one, -log_weights[0])
    torch.testing.assert_close(two, -(log_weights[0] + log_weights[2]) / 2)


def test_questions_without_a_target_leave_the_mean() -> None:
    logits_BC = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    both = reading_loss(logits_BC, torch.tensor([[True, False], [False, False]]))
    torch.testing.assert_close(both, reading_loss(logits_BC[:1], torch.tensor([[True, False]])))
    assert reading_loss(logits_BC, torch.zeros(2, 2, dtype=torch.bool)).item() == 0


def test_facts_that_may_not_be_read_do_not_disturb_the_gradient() -> None:
    query_BD, fact_ND, gold = _problem()
    _, *gradients = _gradients(KMipsAttention(1, "per_question"), query_BD, fact_ND, gold)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_equal_scores_prefer_the_smaller_id() -> None:
    facts = TensorFacts(torch.ones(5, 2))
    assert facts.search(np.ones((1, 2), np.float32), 3).tolist() == [[0, 1, 2]]
    assert facts.search(np.ones((1, 2), np.float32), 7).tolist() == [[0, 1, 2, 3, 4, -1, -1]]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="k >= 1"):
        KMipsAttention(0)
    with pytest.raises(ConfigError, match="candidates"):
        KMipsAttention(3, "unio")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pad with -1"):
        KMipsAttention(3)(torch.ones(2, 3), torch.ones(4, 3), np.zeros((1, 1), np.int64))
    with pytest.raises(ConfigError, match="empty memory"):
        KMipsAttention(3)(torch.ones(2, 3), torch.ones(0, 3))
    for k in (3.5, True, "3"):
        with pytest.raises(ConfigError, match="k as a whole number"):
            KMipsAttention(k)  # type: ignore[arg-type]
    assert KMipsAttention(np.int64(3)).k == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("candidates", ["union", "per_question", "full"])
@pytest.mark.parametrize(
    ("query_BD", "error", "says"),
    [
        (torch.ones(2, 5), DimensionMismatch, "queries of dimension 3, found 5"),
        (torch.ones(3), InvalidVectors, r"floats \[B, D\], found torch.float32 of shape \[3\]; one query q is"),
        (torch.ones(2, 3, dtype=torch.int64), InvalidVectors, "floats"),
        (torch.tensor([[0.0] * 3, [float("nan")] * 3]), InvalidVectors, "query 1"),
        (np.ones((2, 3), np.float32), InvalidVectors, "torch tensor .* found ndarray"),
    ],
)
def test_bad_queries_are_refused_over_a_tensor_as_over_a_memory(
    candidates: str, query_BD: Tensor, error: type[HmnError], says: str
) -> None:
    with pytest.raises(error, match=says):
        KMipsAttention(2, candidates)(query_BD, torch.ones(4, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("facts", [np.ones((4, 3), np.float32), None, [[1.0, 2.0, 3.0]]])
def test_facts_of_another_kind_are_refused_with_what_to_pass(facts: object) -> None:
    with pytest.raises(InputError, match=r"a torch tensor .* an open memory or a FactSource, found"):
        KMipsAttention(2)(torch.ones(2, 3), facts)  # type: ignore[arg-type]
    with pytest.raises(InvalidVectors, match=r"facts of shape \[N, D\], found \[3\]"):
        KMipsAttention(2)(torch.ones(2, 3), torch.ones(3))


def test_a_source_of_ones_own_with_other_vectors_is_refused() -> None:
    class Wide(TensorFacts):
        def encode(self, fact_ids_C: np.ndarray) -> Tensor:
            return torch.ones(len(fact_ids_C), 7)

    with pytest.raises(DimensionMismatch, match="queries of dimension 7, found 3"):
        KMipsAttention(2)(torch.ones(2, 3), Wide(torch.ones(4, 3)))


@pytest.mark.parametrize("candidates", ["union", "per_question", "full"])
@pytest.mark.parametrize("gold", [None, np.empty((0, 2), np.int64)])
def test_no_questions_read_nothing(candidates: str, gold: np.ndarray | None) -> None:
    query_BD = torch.ones(0, 3, requires_grad=True)
    reading = KMipsAttention(2, candidates)(query_BD, torch.ones(500, 3), gold)  # type: ignore[arg-type]
    assert reading.read_BD.shape == (0, 3)
    assert len(reading.softmax_size_B) == 0
    reading.read_BD.sum().backward()
    with pytest.raises(ConfigError, match="empty memory"):
        KMipsAttention(2, candidates)(torch.ones(2, 3), torch.ones(0, 3))  # type: ignore[arg-type]


def test_a_memory_refuses_and_reads_as_a_tensor_does(tmp_path: Path) -> None:
    fact_ND = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    with MemoryWriter(tmp_path, dim=3) as writer:
        writer.append(pa.table({"fact_id": np.arange(9)}), fact_ND.numpy())
    attention = KMipsAttention(2)
    with open_memory(str(tmp_path)) as memory:
        query_BD = torch.ones(2, 3, requires_grad=True)
        stored, plain = attention(query_BD, memory), attention(query_BD, fact_ND)
        torch.testing.assert_close(stored.read_BD, plain.read_BD)
        assert not stored.fact_CD.requires_grad, "stored vectors are constants"
        assert attention(torch.ones(0, 3), memory).read_BD.shape == (0, 3)
        with pytest.raises(DimensionMismatch, match="dimension 3, found 5"):
            attention(torch.ones(2, 5), memory)


def test_gold_facts_may_be_a_list_or_a_tensor_of_ids() -> None:
    query_BD, fact_ND, gold = _problem()
    expected = KMipsAttention(1)(query_BD, fact_ND, gold).fact_ids_C
    for given in (gold.tolist(), torch.from_numpy(gold)):
        np.testing.assert_array_equal(KMipsAttention(1)(query_BD, fact_ND, given).fact_ids_C, expected)
    with pytest.raises(ConfigError, match="int64 ids, found float64"):
        KMipsAttention(1)(query_BD, fact_ND, gold.astype(np.float64))
