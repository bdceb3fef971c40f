"""The one protocol by which long work says how far it is; the command line draws it, tests ignore it."""

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called with absolute numbers as often as the work likes; the receiver decides how often to show them.

    task: what is being done, as a person would say it ("embed", "train"); one bar or line per task.
    done, total: in `unit`s; total None while it is not known. done == total ends the task.
    note: a few words beside the bar ("loss 0.213"), optional.
    """

    def __call__(self, task: str, done: int, total: int | None = None, *, unit: str = "", note: str = "") -> None: ...


def silent(task: str, done: int, total: int | None = None, *, unit: str = "", note: str = "") -> None:
    """The Progress that shows nothing."""
