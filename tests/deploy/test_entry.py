"""Every way a command can end: its exit status, and one line."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import click
import pytest

from deploy.cli import hmn
from deploy.entry import run
from deploy.options import json_option
from memory_store.errors import ConfigError, CorruptFile, StorageFailed


def command_that(work: Callable[[], object]) -> click.Command:
    @click.command("work")
    @json_option
    def command() -> object:
        return work()

    return command


def raising(error: BaseException) -> click.Command:
    def work() -> None:
        raise error

    return command_that(work)


class RemoteError(Exception):
    """What Ray raises here when a worker raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a remote traceback\nof many lines")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("expected k >= 1, found 0"), 2, "error: expected k >= 1, found 0"),
        (CorruptFile("a.arrow: expected 9 bytes,\nfound 3"), 1, "error: a.arrow: expected 9 bytes, found 3"),
        (StorageFailed("disk full"), 1, "error: disk full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "error: Permission denied: /x/y"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device; free some space and"),
        (RemoteError(CorruptFile("a part is gone")), 1, "error: a part is gone"),
        (ValueError("some\nbug"), 1, "error: unexpected ValueError: some bug; run again with HMN_DEBUG=1"),
        (KeyError(), 1, "error: unexpected KeyError: no message; run again with HMN_DEBUG=1"),
        (click.UsageError("no such thing."), 2, "error: no such thing."),
    ],
)
def test_every_error_is_one_line(
    error: Exception, status: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HMN_DEBUG", raising=False)
    assert run(raising(error), []) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(line)
    assert shown.err.count("\n") == 1


def test_the_error_that_a_library_wrapped_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        try:
            raise ConfigError("expected a number")
        except ConfigError as cause:
            raise RuntimeError("a step failed") from cause

    assert run(command_that(work), []) == 2
    assert capsys.readouterr().err == "error: expected a number\n"


@pytest.mark.parametrize("before", range(250, 300, 7))
def test_a_password_is_hidden_wherever_a_long_message_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.delenv("HMN_DEBUG", raising=False)
    assert run(raising(ValueError(f"{'x' * before} s3://user:a-password-of-many-letters@bucket/kb")), []) == 1
    assert "user" not in capsys.readouterr().err


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMN_DEBUG", "1")
    with pytest.raises(ValueError, match="a bug"):
        run(raising(ValueError("a bug")), [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["completion"], "Choose from: bash, zsh, fish. Try '"),
        (["train", "--run", "x"], "or with --config. Try '"),
        (["bench", "serch"], "No such benchmark 'serch'. Did you mean 'search'? Try '"),
    ],
)
def test_wrong_usage_takes_one_line_of_whole_sentences(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(hmn, arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_an_interrupt_takes_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_sigterm_ends_a_command_as_an_interrupt_does(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned_up: list[bool] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            cleaned_up.append(True)

    assert run(command_that(work), []) == 143
    assert cleaned_up == [True]
    assert capsys.readouterr().err.strip() == "ended by SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_status_that_a_command_returns_is_the_exit_status() -> None:
    assert run(command_that(lambda: 1), []) == 1
    assert run(command_that(lambda: None), []) == 0
    assert run(command_that(lambda: click.get_current_context().exit(1)), []) == 1


@pytest.mark.parametrize("wrong", [["--json", "--nonsense"], ["--nonsense", "--json"], ["--json", "superfluous"]])
def test_json_is_one_object_where_the_command_was_not_understood_too(
    capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert run(command_that(lambda: None), wrong) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["type"] in ("NoSuchOption", "UsageError")
    assert shown.err.startswith(f"error: {error['message']}")


def test_json_stays_one_object_when_libraries_print_and_when_the_work_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HMN_DEBUG", raising=False)

    def work() -> None:
        print("a library that talks")
        raise CorruptFile("a part is gone")

    assert run(command_that(work), ["--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"error": {"type": "CorruptFile", "message": "a part is gone"}}
    assert shown.err == "a library that talks\nerror: a part is gone\n"


def test_a_reader_that_goes_away_is_not_complained_about() -> None:
    program = "import sys; from deploy.cli import hmn; from deploy.entry import main; main(hmn)"
    with subprocess.Popen(
        [sys.executable, "-c", program, "plan", "--facts", "9", "--dim", "9", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1
