"""The merge of partial answers against a plain sort."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memory_store.topk import NO_FACT, PartialTopK, merge, select

# a few scores only, so that ties are common; -inf is a real score, not an absent one
SCORES = st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 1.0, 1.0 + 2**-52, np.inf])


@given(st.dictionaries(st.integers(0, 60), SCORES, max_size=40), st.integers(1, 12), st.integers(1, 7), st.randoms())
def test_a_merge_of_shards_equals_a_sort_of_everything(scores, k, num_shards, random) -> None:
    shards = [[] for _ in range(num_shards)]
    for fact_id in scores:
        random.choice(shards).append(fact_id)
    partials = []
    for shard in shards:
        ids = np.array([shard], dtype=np.int64).reshape(1, -1)
        partials.append(select(ids, np.array([[scores[i] for i in shard]], dtype=np.float64).reshape(1, -1), k))
    merged = merge(partials, k)
    expected = sorted(scores, key=lambda fact_id: (-scores[fact_id], fact_id))[:k]
    expected += [NO_FACT] * (k - len(expected))
    assert merged.fact_ids_BK.tolist() == [expected]
    assert merged.scores_BK.tolist() == [[scores[i] if i != NO_FACT else -np.inf for i in expected]]


@given(st.permutations(range(4)))
def test_the_order_of_the_partials_does_not_matter(order) -> None:
    rng = np.random.default_rng(0)
    partials = [
        select(np.arange(5 * s, 5 * s + 5, dtype=np.int64)[None], rng.integers(0, 3, (1, 5)).astype(np.float64), 4)
        for s in range(4)
    ]
    straight, shuffled = merge(partials, 6), merge([partials[i] for i in order], 6)
    np.testing.assert_array_equal(straight.fact_ids_BK, shuffled.fact_ids_BK)
    np.testing.assert_array_equal(straight.scores_BK, shuffled.scores_BK)


def test_a_real_score_of_minus_infinity_comes_before_an_absent_slot() -> None:
    partial = PartialTopK(fact_ids_BK=np.array([[NO_FACT, 7]]), scores_BK=np.array([[-np.inf, -np.inf]]))
    assert merge([partial], 2).fact_ids_BK.tolist() == [[7, NO_FACT]]
