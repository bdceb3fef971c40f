"""The processes of the mix as whoever gives the orders sees them: started, ordered, heard, killed."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from kill_mix.child import Order, Report

__all__ = ["Crew", "Member"]

PATIENCE_S = 240.0  # for the next word of anybody; on a busy machine a dead shard takes its time to come back
_HERE = Path(__file__).parent.parent
_SAID_LINES, _STACK_LINES = 30, 200
_STACK_S = 5.0  # to write it


class Member:
    """One process. owes: something is still to be heard of it: that it is ready, what it was told to do, its end.

    doomed: it may end, for it was told when to die. killed: it must.
    """

    def __init__(self, kind: str, name: str, process: "subprocess.Popen[str]", errors: Path) -> None:
        self.kind = kind
        self.name = name
        self.process = process
        self.errors = errors
        self.owes = True
        self.is_ready = False
        self.doomed = False
        self.killed = False


class Crew:
    """All processes that run now. What they report comes one by one, whoever said it."""

    def __init__(self, folder: Path) -> None:
        self.members: dict[str, Member] = {}
        self._folder = folder
        self._started = 0
        self._heard: queue.Queue[tuple[Member, Report | None]] = queue.Queue()
        self._listeners: list[threading.Thread] = []

    def start(self, kind: str, name: str, *args: str, environment: dict[str, str] | None = None) -> None:
        """Run kill_mix.<kind> under a name; `hear` will say when it is ready."""
        self._started += 1
        errors = self._folder / f"{name}-{self._started}.txt"
        paths = os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        with errors.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"kill_mix.{kind}", *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | (environment or {}) | {"PYTHONPATH": paths},
            )
        member = self.members[name] = Member(kind, name, process, errors)
        self._listeners.append(threading.Thread(target=self._listen, args=(member,)))
        self._listeners[-1].start()

    def order(self, name: str, order: Order) -> None:
        member = self.members[name]
        assert not member.owes, f"{name} is told a second thing before it has reported the first"
        member.owes = True
        member.doomed |= "die_at" in order
        pipe = cast(IO[str], member.process.stdin)
        with suppress(BrokenPipeError):  # it has ended, as `hear` will say
            pipe.write(json.dumps(order) + "\n")
            pipe.flush()

    def hear(self) -> tuple[Member, Report | None]:
        """Wait for the next report of anybody; None when its process has ended, as it was to."""
        try:
            member, report = self._heard.get(timeout=PATIENCE_S)
        except queue.Empty:
            stands = {name: self._stack(member) for name, member in self.members.items() if member.owes}
            said = "".join(f"\n{name}: {stack}" for name, stack in stands.items())
            raise AssertionError(f"nobody said a word within {PATIENCE_S:g} s; awaited are{said}") from None
        if report is not None:
            assert "failed" not in report, f"{member.name}: {report['failed']}"
            member.owes = member.killed
            member.is_ready = True
            return member, report
        del self.members[member.name]
        self._close(member)
        said = "".join(member.errors.read_text().splitlines(keepends=True)[-_SAID_LINES:])
        assert member.doomed or member.killed, f"{member.name} ended with status {member.process.returncode}: {said}"
        return member, None

    def kill(self, name: str) -> None:
        member = self.members[name]
        member.killed = member.owes = True
        member.process.kill()

    @property
    def owing(self) -> bool:
        """Whether there is anything to hear."""
        return any(member.owes for member in self.members.values())

    @property
    def starting(self) -> set[str]:
        """The names of those that are not ready yet."""
        return {name for name, member in self.members.items() if not member.is_ready}

    def close(self) -> None:
        for member in self.members.values():
            member.process.kill()
            self._close(member)
        self.members.clear()
        for listener in self._listeners:
            listener.join()

    def _listen(self, member: Member) -> None:
        with cast(IO[str], member.process.stdout) as pipe:
            for line in pipe:
                if line.endswith("\n"):  # else it was killed while it spoke
                    self._heard.put((member, json.loads(line)))
        self._heard.put((member, None))

    def _stack(self, member: Member) -> str:
        """Where a process stands that nobody hears of, in all its threads; the end of what it wrote to stderr."""
        member.process.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            member.process.wait(_STACK_S)
        return "".join(member.errors.read_text().splitlines(keepends=True)[-_STACK_LINES:])

    def _close(self, member: Member) -> None:
        member.process.wait()
        with suppress(BrokenPipeError):  # an order that it did not read any more
            cast(IO[str], member.process.stdin).close()
