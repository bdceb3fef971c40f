"""Runs a command and turns every way it can end into an exit status and at most one line."""

import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from deploy.console import Console, to_json
from memory_store.errors import HmnError
from memory_store.redaction import redact

__all__ = ["main", "run"]

DONE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143
DEBUG_HINT = "run again with HMN_DEBUG=1 to see where"


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: whatever cleans up after Ctrl-C cleans up."""


def main(command: click.Command) -> NoReturn:
    """The `main` of `hmn` and of every `python -m deploy.jobs.<name>`."""
    sys.exit(run(command))


def run(command: click.Command, args: Sequence[str] | None = None) -> int:
    """Run a command with `args` (default: the process's) and return its exit status.

    0: done; 1: the work failed; 2: wrong usage or a setting that cannot be; 130: interrupted; 143: ended by SIGTERM.
    """
    debug = os.environ.get("HMN_DEBUG", "") not in ("", "0")
    with _quiet_libraries(debug), _ended_by_sigterm(), Console() as console:
        try:
            # --help shows the way it was really called, `hmn` or `python -m deploy.jobs.train`
            status = command.main(args, standalone_mode=False, obj=console)
            sys.stdout.flush()
            return status if isinstance(status, int) else DONE
        except (click.Abort, KeyboardInterrupt) as error:  # an Abort carries what it stands for
            console.close_bars()
            terminated = isinstance(error.__cause__ or error, _Terminated)
            print("ended by SIGTERM" if terminated else "interrupted", file=sys.stderr, flush=True)
            return TERMINATED if terminated else INTERRUPTED
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return error.exit_code
        except click.ClickException as error:
            hint = (
                f" Try '{error.ctx.command_path} --help'." if isinstance(error, click.UsageError) and error.ctx else ""
            )
            message = " ".join(redact(error.format_message()).split())
            stop = "." if hint and not message.endswith((".", "?", "!")) else ""
            print(f"error: {message}{stop}{hint}", file=sys.stderr)
            console.json |= "--json" in (sys.argv[1:] if args is None else args)  # click may not have come that far
            _say_failure(console, type(error).__name__, message)
            return error.exit_code
        except BrokenPipeError:
            _forget_stdout()
            return FAILED  # as click ends it when the reader goes away earlier
        except Exception as error:  # the last handler: whatever it was, the user gets one line
            if debug:
                raise
            console.close_bars()
            return _report(console, error)


def _report(console: Console, error: Exception) -> int:
    ours = _first_of_ours(error)
    if ours is not None:
        message, status = str(ours), ours.exit_status
    elif isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        message, status = f"{error.strerror or error}{place}", FAILED
        if error.errno == errno.ENOSPC:
            message += "; free some space and run the same command again"
    else:
        said = redact(" ".join(str(error).split())) or "no message"  # before it is cut, perhaps inside a password
        message, status = f"unexpected {type(error).__name__}: {said[:300]}; {DEBUG_HINT}", FAILED
    message = redact(" ".join(message.split()))
    print(f"error: {message}", file=sys.stderr, flush=True)
    _say_failure(console, type(ours or error).__name__, message)
    return status


def _say_failure(console: Console, kind: str, message: str) -> None:
    """The one object that --json promises."""
    try:
        if console.json:
            console.result(to_json({"error": {"type": kind, "message": message}}), lambda: None)
        sys.stdout.flush()
    except OSError:
        _forget_stdout()


def _first_of_ours(error: BaseException) -> HmnError | None:
    """The HmnError that a library (Ray wraps what workers raise) carries as its cause, or the error itself."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or current in seen:
            continue
        seen.append(current)
        inner = getattr(current, "cause", None)
        # Ray's error for a worker's exception is also an instance of our class, but its text is a remote traceback.
        if isinstance(current, HmnError) and not isinstance(inner, BaseException):
            return current
        waiting += [inner, current.__cause__, current.__context__]
    return None


def _forget_stdout() -> None:
    """Whatever is still buffered has nowhere to go; without this Python complains once more at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """`docker stop`, `ray job stop`, systemd and Kubernetes send SIGTERM: a command ends as it does after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # others may not say what happens
        yield
        return

    def end(*_: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet_libraries(debug: bool) -> Iterator[None]:
    """Warnings and logs of libraries are for developers: shown with HMN_DEBUG=1, where ours say what a user must do."""
    stdout = sys.stdout
    with warnings.catch_warnings():
        if not debug and not sys.warnoptions:
            warnings.simplefilter("ignore")
        logging.basicConfig(
            level=logging.INFO if debug else logging.ERROR, format="%(levelname)s %(name)s: %(message)s"
        )
        try:
            yield
        finally:
            sys.stdout = stdout  # --json lent it away (deploy/options.py)
