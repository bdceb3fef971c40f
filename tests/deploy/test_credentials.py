"""A memory URL that holds a password: no command prints it, logs it, or writes it into a report."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deploy.cli import hmn
from deploy.console import Console, to_json
from deploy.entry import run

URL = "vault://me:s3cr3t@host/kb"
FACTS = "subject_id\tsubject\trelation\tobject_id\tobject\np1\tann\tborn_in\tx1\tAnnaba\np2\tbob\tborn_in\tx2\tBern\n"
QUESTIONS = (
    "subject_id\trelation\tobject_id\tquestion\np1\tborn_in\tx1\twhere was ann born\np2\tborn_in\tx2\tbob born\n"
)
CONFIG = f"""
run_dir = "run"
[memory]
url = "{URL}"
[data]
questions = "questions_*.tsv"
facts = ["facts.tsv"]
[model]
entity_dim = 8
relation_dim = 8
feature_bits = 10
hidden = 8
reader_hidden = 8
[train]
epochs = 1
batch_questions = 2
k = 2
threads = 1
"""


class VaultFileSystem(MemoryFileSystem):
    """A store that wants a password in its URL, and repeats it when it fails."""

    protocol = "vault"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    broken: ClassVar[bool] = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.split("://")[-1].rpartition("@")[2].strip("/")

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        if VaultFileSystem.broken:
            raise ConnectionError(f"cannot reach {URL}")
        return super().cat_file(path, *arguments, **options)


@pytest.fixture
def said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Callable[..., str]]:
    """Run a command with the vault there; gives everything that it said, on every channel, checked for the password."""
    fsspec.register_implementation("vault", VaultFileSystem, clobber=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HMN_DEBUG", raising=False)
    Path("facts.tsv").write_text(FACTS)
    for split in ("train", "valid"):
        Path(f"questions_{split}.tsv").write_text(QUESTIONS)
    Path("run.toml").write_text(CONFIG)

    def call(*words: str, status: int = 0) -> str:
        with caplog.at_level(logging.DEBUG):
            found = run(hmn, list(words))
        captured = capsys.readouterr()
        text = f"{captured.out}\n{captured.err}\n{caplog.text}"
        assert found == status, text
        assert "s3cr3t" not in text, words
        return text

    yield call
    VaultFileSystem.store.clear()
    VaultFileSystem.broken = False


def test_no_command_says_the_password(said: Callable[..., str]) -> None:
    assert "vault://***@host/kb" in said("ingest", "facts.tsv", "--memory", URL)
    said("train", "run.toml")
    for words in (
        ("ingest", "facts.tsv", "--memory", URL, "--json"),
        ("inspect", URL),
        ("inspect", URL, "--json"),
        ("verify", URL),
        ("tag", URL, "one"),
        ("compact", URL, "--json"),
        ("upsert", "facts.tsv", "--memory", URL, "--model", "run"),
        ("embed", "--memory", URL, "--model", "run"),
        ("sweep", URL),
        ("ask", "where was ann born", "--run", "run", "--json"),
        ("delete", "facts.tsv", "--memory", URL, "--json"),
    ):
        said(*words)
    said("inspect", URL, "--generation", "99", status=1)
    said("delete", "--fact", "7", "--memory", URL, status=1)
    VaultFileSystem.broken = True
    assert "***@host" in said("inspect", URL, status=1)
    for name in ("report.html", "report.json", "metrics.jsonl", "environment.json"):
        assert "s3cr3t" not in (Path("run") / name).read_text(), name


def test_what_a_command_shows_or_gives_as_json_is_redacted_in_one_place() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err)
    console.pairs({"memory": URL})
    console.table(("memory",), [(URL,)], title=URL, notes=[URL])
    console.say(URL)
    console.progress("embed", 1, 1, note=URL)
    assert "s3cr3t" not in out.getvalue() + err.getvalue()
    assert "s3cr3t" not in json.dumps(to_json({"memory": URL, "parts": [URL]}))
