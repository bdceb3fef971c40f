"""`hmn completion`: the script that lets a shell complete commands, options and files."""

import click
from click.shell_completion import get_completion_class

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

__all__ = ["command"]


@click.command(
    "completion",
    short_help="Let bash, zsh or fish complete what you type.",
    epilog=examples(
        "hmn completion bash >> ~/.bashrc",
        "hmn completion zsh >> ~/.zshrc",
        "hmn completion fish > ~/.config/fish/completions/hmn.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script for SHELL; it takes effect in shells that are started after it was installed."""
    console: Console = ctx.obj
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all shells that the argument allows"
    script = kind(ctx.find_root().command, {}, "hmn", "_HMN_COMPLETE").source()
    console.result({"shell": shell, "script": script}, lambda: console.write(script.rstrip("\n")))


if __name__ == "__main__":
    main(command)
