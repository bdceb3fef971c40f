"""`hmn bench exactness`: it finds nothing wrong with the exact index, and it would find a wrong answer."""

import numpy as np
import pytest

from deploy.bench.exactness import KINDS, brute_force, run_exactness_bench
from memory_store.topk import PartialTopK


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_searched_and_right(kind: str) -> None:
    checked = run_exactness_bench(sizes=(1, 300), dims=(5,), kinds=(kind,), backends=("local",))
    assert [line.facts for line in checked] == [1, 300]
    assert all(line.answers > 0 and line.wrong == 0 for line in checked)


def test_a_wrong_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(*args: object) -> PartialTopK:
        found = brute_force(*args)  # type: ignore[arg-type]
        return PartialTopK(fact_ids_BK=found.fact_ids_BK + 1, scores_BK=found.scores_BK)

    monkeypatch.setattr("deploy.bench.exactness.brute_force", off_by_one)
    checked = run_exactness_bench(sizes=(17,), dims=(3,), kinds=("random",), backends=("local",))
    assert all(line.wrong == line.answers for line in checked)


@pytest.mark.parametrize("kind", KINDS)
def test_brute_force_agrees_with_a_loop(kind: str) -> None:
    rng = np.random.default_rng(3)
    vectors_ND = KINDS[kind](rng, 40, 7)
    ids_N = rng.permutation(40).astype(np.int64)
    query_1D = KINDS["random" if kind == "zero" else kind](rng, 1, 7)
    found = brute_force(ids_N, vectors_ND, query_1D, 10)
    scored = [
        (-float((row.astype(np.float64) * query_1D[0].astype(np.float64)).sum()), int(i))
        for i, row in zip(ids_N, vectors_ND, strict=True)
    ]
    assert found.fact_ids_BK[0].tolist() == [number for _, number in sorted(scored)[:10]]
