"""What a shell asks of `hmn` while somebody types."""

import os
import shutil
import subprocess
import sys

import pytest

from deploy.cli import hmn
from deploy.entry import run

HMN = "import sys; sys.argv[0] = 'hmn'; from deploy.cli import main; main()"


def completed(words: str, at: int) -> list[str]:
    """What bash would offer for the word `at` of a line."""
    done = subprocess.run(
        [sys.executable, "-c", HMN],
        env={**os.environ, "_HMN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout.split()


def test_commands_options_and_folders_are_completed() -> None:
    assert completed("hmn ev", 1) == ["plain,evaluate"]
    assert completed("hmn evaluate --sp", 2) == ["plain,--split"]
    assert completed("hmn evaluate --split v", 3) == ["plain,valid"]
    assert completed("hmn report ", 2) == ["dir,"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_hmn_and_is_one_that_the_shell_can_read(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(hmn, ["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_HMN_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is not None:
        assert subprocess.run([program, "-n", "/dev/stdin"], input=script, text=True, check=False).returncode == 0


def test_every_command_answers_as_json_when_asked() -> None:
    commands = [*hmn.commands.values()]
    commands += [one for group in commands if hasattr(group, "commands") for one in group.commands.values()]
    without = [
        command.name
        for command in commands
        if not hasattr(command, "commands") and "--json" not in [text for one in command.params for text in one.opts]
    ]
    assert without == []
