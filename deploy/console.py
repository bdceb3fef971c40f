"""What a command shows: results on stdout, everything else on stderr; bars on a terminal, plain lines in a log."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from memory_store.redaction import redact

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = ["Console", "duration", "size", "to_json"]

LOG_INTERVAL_S = 15.0  # between two plain lines about one task


class Console:
    """Handed to every command. Satisfies memory_store.progress.Progress by its method `progress`.

    json: the command promised one JSON object on stdout; everything else, prints of libraries too, goes to stderr.
    Credentials in URLs are shown nowhere: what is printed here ends in logs.
    """

    def __init__(
        self, out: TextIO | None = None, err: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.json = False
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._clock = clock
        self._live = self._err.isatty()
        self._bars: Bars | None = None
        self._tasks: dict[str, _Task] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close_bars()

    # Results

    def result(self, data: object, show: Callable[[], None]) -> None:
        """The outcome of a command: `data` as the one JSON object, or what `show` prints for a person."""
        self.close_bars()
        if self.json:
            self.write(json.dumps(to_json(data), ensure_ascii=False))
        else:
            show()

    def write(self, line: str = "") -> None:
        """One line on stdout, as it is."""
        self.close_bars()
        print(line if self.json else redact(line), file=self._out, flush=True)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", notes: Sequence[str] = ()
    ) -> None:
        """Aligned columns on stdout; a column whose cells are all numbers stands right."""
        cells = [[_cell(value) for value in row] for row in rows]
        right = [all(_is_number(row[at]) for row in rows) for at in range(len(columns))]
        widths = [max([len(name), *(len(row[at]) for row in cells)]) for at, name in enumerate(columns)]

        def line(row: Sequence[str]) -> str:
            padded = [
                text.rjust(width) if is_right else text.ljust(width)
                for text, width, is_right in zip(row, widths, right, strict=True)
            ]
            return "  ".join(padded).rstrip()

        if title:
            self.write(title)
        self.write(line(columns))
        self.write("  ".join("-" * width for width in widths))
        for row in cells:
            self.write(line(row))
        for note in notes:
            self.write(note)

    def pairs(self, rows: Mapping[str, object]) -> None:
        """Names and values on stdout, one pair a line."""
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            self.write(f"{name.ljust(width)}  {_cell(value)}")

    # Everything else

    def say(self, text: str = "") -> None:
        """One line for the person who watches, on stderr."""
        text = redact(text)
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._err, flush=True)

    def progress(self, task: str, done: int, total: int | None = None, *, unit: str = "", note: str = "") -> None:
        """Show how far a task is: a bar on a terminal, else a line now and then and one at its end."""
        known = self._tasks.get(task)
        if known is None or done < known.done:  # a task that starts again is a new one
            known = self._tasks[task] = _Task(started_s=self._clock(), shown_s=self._clock(), first=done)
        known.done, known.total, known.unit, known.note = done, total, unit, note
        known.reports += 1
        if self._live:
            self._draw(task, known)
        else:
            self._log(task, known)

    @contextmanager
    def timed(self, task: str) -> Iterator[None]:
        """A line before a step and one after it, with its time."""
        started_s = self._clock()
        self.say(f"{task} ...")
        yield
        self.close_bars()
        self.say(f"{task}: {duration(self._clock() - started_s)}")

    def close_bars(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def _draw(self, name: str, task: "_Task") -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Terminal(file=self._err),
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bars.start()
        if task.bar is None:
            task.bar = int(self._bars.add_task(name, total=task.total, text=""))
        self._bars.update(
            task.bar,  # type: ignore[arg-type]  # rich's TaskID is an int
            completed=task.done,
            total=task.total,
            text=task.amount(),
        )

    def _log(self, name: str, task: "_Task") -> None:
        now_s = self._clock()
        ended = task.total is not None and task.done >= task.total
        if task.ended or not (ended or now_s - task.shown_s >= LOG_INTERVAL_S):
            return
        task.shown_s, task.ended = now_s, ended
        spent_s = now_s - task.started_s
        # A task that is done at its first report was not timed.
        self.say(f"{name}: {task.amount()}" + (f", {duration(spent_s)}" if task.reports > 1 else ""))


@dataclasses.dataclass
class _Task:
    started_s: float
    shown_s: float
    first: int
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""
    ended: bool = False
    bar: int | None = None
    reports: int = 0

    def amount(self) -> str:
        """How far, in words: `3 / 12 parts, loss 0.2`."""
        of = f" / {self.total:,}" if self.total is not None else ""
        text = f"{self.done:,}{of} {self.unit}".rstrip()
        return f"{text}, {self.note}" if self.note else text


def to_json(value: Any) -> Any:
    """Dataclasses, paths, numpy numbers and arrays as what JSON knows; NaN and infinity as null; no credentials."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, str | Path):
        return redact(str(value))
    if hasattr(value, "tolist"):  # numpy arrays and numbers
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Sequence | set | frozenset):
        return [to_json(item) for item in value]
    return str(value)


def size(count_bytes: float) -> str:
    """Bytes for a person: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count_bytes < 1024:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for a person: `0.4 s`, `2 min 5 s`, `1 h 3 min`."""
    if seconds < 59.95:  # what would round to 60.0
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return str(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
