"""Options that several commands share, so that one word means one thing everywhere."""

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from deploy.console import Console

__all__ = ["backend_option", "examples", "grouping_option", "json_option", "memory_option", "workers_option"]


def examples(*lines: str) -> str:
    """The end of a command's --help: lines that can be typed as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _promise_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.ensure_object(Console).json = True
        sys.stdout = sys.stderr  # a library that prints must not break the one JSON object; Console kept the real one


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json: exactly one JSON object on stdout, also when the work fails."""
    return click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_promise_json,
        help="Print one JSON object on stdout; progress and logs go to stderr.",
    )(command)


def memory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--memory URL, required."""
    return click.option(
        "--memory", "url", metavar="URL", required=True, help="The memory: a folder or any fsspec URL."
    )(command)


def grouping_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--grouping: what one fact is."""
    return click.option(
        "--grouping",
        type=click.Choice(["relation", "triple"]),
        default="relation",
        show_default=True,
        help="One fact per subject and relation with all its objects, or one per triple.",
    )(command)


def workers_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--workers N: Ray tasks at a time."""
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=None,
        show_default="one per core",
        help="Parts worked on at the same time.",
    )(command)


def backend_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--backend: where the work runs."""
    return click.option(
        "--backend",
        type=click.Choice(["local", "ray"]),
        default=lambda: "ray" if os.environ.get("RAY_ADDRESS") else "local",
        show_default="ray inside a Ray job, else local",
        help="In this process, or as Ray tasks on all cores.",
    )(command)
