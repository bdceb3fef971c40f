"""`hmn doctor`: what is installed, what this machine can do, and whether Ray works here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from deploy.checks import Check

__all__ = ["command"]


@click.command(
    "doctor",
    short_help="Check this machine: packages, processor, disk, Ray.",
    epilog=examples("hmn doctor", "hmn doctor --no-ray --json"),
)
@click.option("--ray/--no-ray", "with_ray", default=True, help="Start a local Ray and ask an actor (some seconds).")
@json_option
@click.pass_obj
def command(console: Console, with_ray: bool) -> None:
    """Check this machine: packages, processor, memory, disk, ports, Ray.

    Every line says OK, WARN (works, but read it) or FAIL (will not work) and what to do. Exit status 1 if one FAILs.
    """
    from deploy.checks import Level, check_machine, check_packages, check_ports, check_storage, check_token, locked

    checks = [
        *check_packages(locked()),
        *check_machine(),
        *check_storage(Path.cwd()),
        *check_ports(),
        check_token(os.environ, Path.home()),
    ]
    failed = any(check.level is Level.FAIL for check in checks)
    if with_ray and not (failed and not _ray_is_installed()):
        from deploy.ray_check import check_ray

        console.say("starting Ray ...")
        checks.append(check_ray())
    failed = any(check.level is Level.FAIL for check in checks)
    console.result({"ok": not failed, "checks": checks}, lambda: _show(console, checks))
    if failed:
        click.get_current_context().exit(1)


def _ray_is_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


def _show(console: Console, checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        console.write(f"{check.level:<4}  {check.name.ljust(width)}  {check.found}")
        if check.advice:
            console.write(f"{'':<4}  {'':<{width}}  -> {check.advice}")


if __name__ == "__main__":
    main(command)
