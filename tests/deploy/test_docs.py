"""The documentation names every setting, every command, every option and every file that it should."""

import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest

from deploy.cli import hmn
from trainer.config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def settings_of(section: type, prefix: str = "") -> dict[str, str]:
    """Every setting by its dotted name, with its default as TOML."""
    hints = get_type_hints(section)
    found = {}
    for field in fields(section):  # type: ignore[arg-type]
        if is_dataclass(hints[field.name]):
            found |= settings_of(hints[field.name], f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = "required" if field.default is MISSING else as_toml(field.default)
    return found


def as_toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "`[]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert dict(rows) == settings_of(RunConfig)


@pytest.mark.parametrize("name", sorted(hmn.commands))
def test_every_command_and_option_is_documented(name: str) -> None:
    text = (DOCS / "command-line.md").read_text()
    section = re.search(rf"^## hmn {name}\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/command-line.md has no section on hmn {name}"
    options = [parameter for parameter in hmn.commands[name].params if isinstance(parameter, click.Option)]
    for option in options:
        if option.name not in (None, "json"):
            flag = option.opts[0]
            assert flag in section[0] or flag.replace("--", "--no-") in section[0], (
                f"hmn {name} {flag} is not documented"
            )


@pytest.mark.parametrize("name", sorted(hmn.commands))
def test_every_command_explains_itself_with_examples(name: str) -> None:
    command = hmn.commands[name]
    shown = command.get_help(click.Context(command, info_name=f"hmn {name}"))
    assert "Examples:" in shown
    assert f"  hmn {name}" in shown
    assert len(command.help or "") > 40
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or option.name in ("dtype", "backend", "split", "seed"), f"{name} {option.opts}"


def test_every_file_that_the_map_names_exists() -> None:
    text = (DOCS / "architecture.md").read_text()
    for room, body in re.findall(r"^### (\w+)/: .*?\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL):
        for row in re.findall(r"^\| (`[^|]+) \|", body, re.MULTILINE):
            for name in re.findall(r"`([^`]+)`", row):
                assert list((REPOSITORY / room).glob(name)), f"docs/architecture.md names {room}/{name}"


@pytest.mark.parametrize("package", ["memory_store", "pipeline", "trainer", "deploy"])
def test_every_file_of_a_room_is_on_the_map(package: str) -> None:
    text = (DOCS / "architecture.md").read_text()
    room = re.search(rf"^### {package}/: .*?(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert room is not None
    named = re.findall(r"`([^`]+)`", room[0])
    for path in (REPOSITORY / package).iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            assert path.name in named or f"{path.name}/" in named, f"{package}/{path.name} is not on the map"


@pytest.mark.parametrize("page", sorted([*DOCS.glob("*.md"), *REPOSITORY.glob("*.md")]), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
