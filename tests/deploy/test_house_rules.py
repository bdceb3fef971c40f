"""The rules of the house that no linter knows, run by machine."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("memory_store", "pipeline", "trainer", "deploy")
HEAVY = {"faiss", "pandas", "pyarrow", "ray", "torch"}
LONGEST_FILE_LINES = 500

SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)


def broken_rules(path: Path, text: str) -> list[str]:
    """What a source file breaks of docs/architecture.md, section "Rules that a machine checks"."""
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree) or ""
    roots = {name.partition(".")[0] for name in imported_modules(tree)}
    broken = []
    if not docstring or not text.lstrip().startswith('"""' + docstring.partition("\n")[0]):
        broken.append("needs a docstring that starts on the first line")
    if "ray" in roots and "[ray]" not in docstring:
        broken.append("imports ray without saying [ray] in its docstring")
    if path.name == "__init__.py" and (heavy := sorted(roots & HEAVY)):
        broken.append(f"a package must load quickly, but its __init__.py imports {', '.join(heavy)}")
    if 'if __name__ == "__main__":' in text and "__main__" not in ast.unparse(tree.body[-1]):
        broken.append("goes on after its `if __name__`, so that as a module it runs without what comes then")
    if (lines := text.count("\n")) > LONGEST_FILE_LINES:
        broken.append(f"has {lines} lines, more than {LONGEST_FILE_LINES}")
    return broken


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_source_file_keeps_the_rules(path: Path) -> None:
    assert broken_rules(path, path.read_text()) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_test_file_is_too_long(path: Path) -> None:
    assert path.read_text().count("\n") <= LONGEST_FILE_LINES


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.py", '"""Plain."""\nimport ray.data\n', "without saying"),
        ("a.py", '"""Plain."""\ndef f():\n    from ray import train\n', "without saying"),
        ("a.py", "import os\n", "docstring"),
        ("__init__.py", '"""Package."""\nimport torch\n', "__init__.py imports torch"),
        ("a.py", '"""Runs."""\nif __name__ == "__main__":\n    f()\ndef f():\n    pass\n', "goes on after"),
        ("a.py", '"""Long."""\n' + "\n" * 500, "lines"),
    ],
)
def test_a_file_that_breaks_a_rule_is_reported(name: str, text: str, complaint: str) -> None:
    (only,) = broken_rules(Path(name), text)
    assert complaint in only


@pytest.mark.parametrize("package", [*PACKAGES, "deploy.cli", "deploy.client"])
def test_a_package_and_the_command_line_load_without_their_heavy_libraries(package: str) -> None:
    program = f"import {package}, sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", ["memory_store", "trainer"])
def test_tab_completion_shows_what_a_package_offers_and_no_more(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in dir(module))


def locked_versions() -> dict[str, str]:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines if not line.startswith("#")]
    assert all(pins), "requirements.lock holds name==version lines and comments only"
    return {re.sub(r"[-_.]+", "-", pin[1]).lower(): pin[2] for pin in pins if pin}


def test_the_lock_pins_every_dependency_to_a_version_that_pyproject_allows() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    extras = project["project"]["optional-dependencies"]
    # `bench` names the libraries that we compare ourselves with: nobody needs them, and one is compiled when installed.
    wanted += [line for name, extra in extras.items() if name != "bench" for line in extra]
    pins = locked_versions()
    for requirement in map(Requirement, wanted):
        pinned = pins.get(requirement.name.lower())
        assert pinned is not None, f"{requirement.name} is not in requirements.lock; run make lock"
        assert pinned in requirement.specifier, f"requirements.lock has {pinned}, wanted {requirement}"
