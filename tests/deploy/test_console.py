"""What a command shows, and where."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.console import LOG_INTERVAL_S, Console, duration, size, to_json


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end() -> None:
    err, clock = io.StringIO(), Clock()
    console = Console(io.StringIO(), err, clock=clock)
    for done in range(101):
        clock.now_s = done * LOG_INTERVAL_S / 25
        console.progress("embed", done, 100, unit="parts", note="32-bit")
    lines = err.getvalue().splitlines()
    assert lines[0] == "embed: 25 / 100 parts, 32-bit, 15.0 s"
    assert lines[-1] == "embed: 100 / 100 parts, 32-bit, 1 min 0 s"
    assert len(lines) == 4


def test_a_task_that_has_ended_is_not_reported_again() -> None:
    err = io.StringIO()
    console = Console(io.StringIO(), err)
    for _ in range(3):
        console.progress("read", 5, 5)
    assert err.getvalue().count("\n") == 1


def test_a_task_that_starts_again_is_timed_anew() -> None:
    err, clock = io.StringIO(), Clock()
    console = Console(io.StringIO(), err, clock=clock)
    console.progress("refresh", 0, 2)
    console.progress("refresh", 2, 2)
    clock.now_s = 100
    console.progress("refresh", 0, 2)
    clock.now_s = 101
    console.progress("refresh", 2, 2)
    assert err.getvalue().splitlines() == ["refresh: 2 / 2, 0.0 s", "refresh: 2 / 2, 1.0 s"]


def test_a_terminal_gets_a_bar_and_results_stay_on_stdout() -> None:
    out, err = io.StringIO(), Terminal()
    with Console(out, err) as console:
        console.progress("train", 1, 2, unit="steps", note="loss [bold]0.5")
        console.say("half of it")
        console.progress("train", 2, 2, unit="steps")
        console.result({}, lambda: console.write("done"))
    assert out.getvalue() == "done\n"
    assert "train" in err.getvalue()
    assert "half of it" in err.getvalue()


def test_json_is_one_object_and_nothing_else_on_stdout() -> None:
    out = io.StringIO()
    console = Console(out, io.StringIO())
    console.json = True
    console.progress("read", 1, 1)
    console.result({"facts": np.int64(3), "place": Path("x")}, lambda: console.write("for a person"))
    assert json.loads(out.getvalue()) == {"facts": 3, "place": "x"}


def test_everything_that_commands_return_becomes_json() -> None:
    @dataclass(frozen=True)
    class Inner:
        values: tuple[float, ...]

    value = {"a": Inner((1.5, float("nan"), float("-inf"))), 3: np.zeros((2, 1), np.float32), "s": {1}, "n": None}
    assert to_json(value) == {"a": {"values": [1.5, None, None]}, "3": [[0.0], [0.0]], "s": [1], "n": None}


def test_tables_align_and_numbers_stand_right() -> None:
    out = io.StringIO()
    Console(out, io.StringIO()).table(("name", "facts"), [("geonames", 37_718), ("a", 5)], title="memories")
    assert out.getvalue().splitlines() == [
        "memories",
        "name       facts",
        "--------  ------",
        "geonames  37,718",
        "a              5",
    ]


def test_sizes_and_times_read_like_a_person_says_them() -> None:
    assert [size(0), size(1536), size(3 * 2**40)] == ["0 B", "1.5 KiB", "3.0 TiB"]
    assert [duration(0.44), duration(59.96), duration(125), duration(3_780)] == [
        "0.4 s",
        "1 min 0 s",
        "2 min 5 s",
        "1 h 3 min",
    ]
