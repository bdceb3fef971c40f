"""The documentation as a site: it builds without a warning, and its tutorial does what it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import hmn
from deploy.entry import run

REPOSITORY = Path(__file__).resolve().parents[2]
TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text()
PYTHON = (REPOSITORY / "docs" / "python.md").read_text()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for name in ("mkdocs", "material"):
        pytest.importorskip(name, reason="the site needs mkdocs-material; pip install 'hmn[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert "tutorial.html" in home
    assert not re.findall(r'(?:src|href)="https?://(?:fonts|cdn|unpkg)[^"]*"', home), "it is read without a network"


def test_the_site_holds_every_page_of_the_documentation() -> None:
    docs = REPOSITORY / "docs"
    listed = set(re.findall(r": (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}


def test_every_block_of_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, one after the other: a new one for every command would load torch again and again."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)(?: title=\"(\S+)\")?\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)
    assert {kind for kind, _, _ in blocks} == {"sh", "toml", "python", "console"}
    for kind, title, text in blocks:
        if kind == "toml":
            Path(title).write_text(text)
        elif kind == "python":
            exec(compile(text, "tutorial.md", "exec"), {})
        elif kind == "sh":
            for line in text.splitlines():
                words = shlex.split(line)
                if words[0] == "hmn":
                    assert run(hmn, words[1:]) == 0, line
                else:
                    subprocess.run(line, shell=True, check=True, timeout=60)
    assert "Mudville" in capsys.readouterr().out, "what was upserted is answered"


def test_every_block_of_the_python_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    """One after the other in one module, as in a notebook."""
    monkeypatch.chdir(tmp_path)
    module: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PYTHON, re.MULTILINE | re.DOTALL):
        exec(compile(block, "python.md", "exec"), module)
    assert "Lima" in capsys.readouterr().out
    assert PYTHON.count("```") == 2 * PYTHON.count("```python"), "no block is left out"
