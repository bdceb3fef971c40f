"""kill -9 of everybody who works on a memory, in turn and at random, under load: no answer is wrong, nothing is lost.

`HMN_CHAOS_STEPS` (make chaos) sets how many rounds, one for every hundred steps; by default everybody is killed once.
`HMN_CHAOS_SEED` draws another mix, or that of a failure again. `HMN_CHAOS_LOG` names a file that gets a line of what
was done.
"""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
from kill_mix.kills import VICTIMS, draw_kills
from kill_mix.ledger import Ledger
from kill_mix.mix import Mix

ROUNDS = max(len(VICTIMS), int(os.environ.get("HMN_CHAOS_STEPS", "0")) // 100)
SEED = int(os.environ.get("HMN_CHAOS_SEED", "0"))
LOG = os.environ.get("HMN_CHAOS_LOG")


def test_whoever_is_killed_no_answer_is_wrong_and_nothing_that_was_reported_is_lost(
    ray_ends: None, tmp_path: Path
) -> None:
    ray.shutdown()  # the mix has a cluster of its own, and this process does not join it
    done = Counter({"rounds": 0, "wrong": 0})
    try:
        with Mix(tmp_path, SEED, done) as mix:
            for kill in [*draw_kills(SEED, ROUNDS), None]:
                try:
                    mix.round(kill)
                except Exception as error:
                    where = f"round {done['rounds'] + 1} of HMN_CHAOS_SEED={SEED}, {kill or 'nobody is killed'}"
                    raise AssertionError(f"{where}: {error}") from error
            mix.end()
    except BaseException:
        done["wrong"] += 1
        raise
    finally:
        if LOG:
            with Path(LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"backend": "processes", **done}) + "\n")
    assert {f"{victim}s killed" for victim in VICTIMS} <= done.keys()


# What the mix itself relies on


def test_everybody_is_killed_once_in_any_mix() -> None:
    for seed in range(20):
        assert sorted(kill.victim for kill in draw_kills(seed, 0)) == sorted(VICTIMS)
        assert draw_kills(seed, 50)[: len(VICTIMS)] == draw_kills(seed, 0)


BASE = {0: 0, 1: 0}


@pytest.fixture
def ledger(rng: np.random.Generator) -> tuple[Ledger, dict[int, int]]:
    """A write of one owner that was reported for generation 2, and one that is open; what 2 holds."""
    ledger = Ledger(BASE, Counter())
    first = ledger.draw_write("writer", rng)
    ledger.report("writer", 2)
    ledger.draw_write("writer", rng)
    return ledger, BASE | dict.fromkeys(first["ids"], first["stamp"])


def test_the_ledger_takes_what_was_reported_with_the_open_write_or_without(
    ledger: tuple[Ledger, dict[int, int]],
) -> None:
    books, reported = ledger
    books.check(1, BASE)
    books.check(2, reported)
    books.check(3, reported)
    open_write = BASE | books.held("writer")
    assert open_write != reported
    books.check(4, open_write)
    with pytest.raises(AssertionError, match="generation 5: expected of writer"):
        books.check(5, reported)


def test_the_ledger_refuses_what_was_lost_is_there_in_part_or_came_from_nowhere(
    ledger: tuple[Ledger, dict[int, int]],
) -> None:
    books, reported = ledger
    own = reported.keys() - BASE.keys()
    with pytest.raises(AssertionError, match="generation 2: expected of writer"):
        books.check(2, BASE)
    with pytest.raises(AssertionError, match="generation 1: expected of writer"):
        books.check(1, reported)
    with pytest.raises(AssertionError, match="generation 2: expected of writer"):
        books.check(2, {fact_id: stamp for fact_id, stamp in reported.items() if fact_id != min(own)})
    with pytest.raises(AssertionError, match="others than the 2 facts of the base"):
        books.check(2, reported | {10_000: 1})
    with pytest.raises(AssertionError, match="others than the 2 facts of the base"):
        books.check(2, reported | {0: 7})
