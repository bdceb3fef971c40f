"""What can be wrong with files, folders and input: one clear line, status 1 or 2, and everything as it was."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from numpy.typing import NDArray

from deploy.cli import hmn
from deploy.entry import run
from memory_store.manifest import read_manifest
from memory_store.storage import Storage
from pipeline.embed import embed
from pipeline.ingest import ingest

DIM = 4
ROWS = "".join(
    f"city{number}\tCity {number}\tlocation/country\tcountry{number % 7}\tCountry {number % 7}\n"
    for number in range(300)
)


def encode(facts: pa.Table) -> NDArray[np.float32]:
    values_ND = np.random.default_rng(0).standard_normal((facts.num_rows, DIM), dtype=np.float32)
    return values_ND


@pytest.fixture(scope="module")
def sound_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations: facts, and the same facts with vectors."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "facts.tsv").write_text(ROWS)
    ingest(str(folder / "facts.tsv"), str(folder / "memory"))
    embed(str(folder / "memory"), lambda: encode, fingerprint="made-for-this-test", dim=DIM)
    return folder / "memory"


@pytest.fixture
def memory(sound_memory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_memory, tmp_path / "memory"))


def tree_of(folder: Path) -> dict[str, str]:
    """Every file under a folder with a hash of its bytes."""
    return {
        str(path.relative_to(folder)): xxhash.xxh3_128_hexdigest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error that was shown, after making sure that there is exactly one and nothing like a traceback."""
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, shown.err
    assert "Traceback" not in shown.err
    assert "unexpected" not in errors[0]
    return errors[0]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def replace_by_a_foreign_file(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))


def replace_by_another_table(path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [truncate, empty, flip_a_bit, replace_by_a_foreign_file, remove]


@pytest.mark.parametrize("damage", [*DAMAGES, replace_by_another_table])
@pytest.mark.parametrize("kind", ["facts", "vectors"])
def test_a_damaged_part_is_named_by_verify(
    kind: str, damage: Callable[[Path], None], memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = (memory / kind).glob("*.arrow")
    damage(part)
    before = tree_of(memory)
    assert run(hmn, ["verify", str(memory)]) == 1
    assert part.name in one_line(capsys)
    assert tree_of(memory) == before


@pytest.mark.parametrize("damage", [*DAMAGES, replace_by_another_table])
def test_a_damaged_part_of_facts_is_never_built_upon(
    damage: Callable[[Path], None], memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = (memory / "facts").glob("*.arrow")
    damage(part)
    (tmp_path / "more.tsv").write_text("new\tNew\trelation\tthing\tThing\n")
    before = tree_of(tmp_path)
    assert run(hmn, ["ingest", str(tmp_path / "more.tsv"), "--memory", str(memory)]) == 1
    assert part.name in one_line(capsys)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not remove])
@pytest.mark.parametrize("arguments", [["verify"], ["inspect", "--fact", "1"], ["ingest", "{facts}", "--memory"]])
def test_a_damaged_manifest_is_refused(
    arguments: list[str],
    damage: Callable[[Path], None],
    memory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "more.tsv").write_text("new\tNew\trelation\tthing\tThing\n")
    damage(memory / "manifests" / "00000002.json")
    before = tree_of(tmp_path)
    assert run(hmn, [word.format(facts=tmp_path / "more.tsv") for word in arguments] + [str(memory)]) == 1
    assert "00000002.json" in one_line(capsys)
    assert tree_of(tmp_path) == before


def test_an_older_generation_is_served_when_the_newest_manifest_is_gone(memory: Path) -> None:
    (memory / "manifests" / "00000002.json").unlink()
    assert run(hmn, ["verify", str(memory)]) == 0
    assert read_manifest(Storage(str(memory))).generation == 1


def test_a_memory_without_manifests_is_no_memory(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(memory / "manifests")
    before = tree_of(memory)
    assert run(hmn, ["inspect", str(memory)]) == 1
    assert str(memory) in one_line(capsys)
    assert tree_of(memory) == before


def test_a_manifest_of_a_later_format_says_which_one_is_known(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = memory / "manifests" / "00000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    assert run(hmn, ["verify", str(memory)]) == 1
    assert "99" in one_line(capsys)


def test_a_fact_that_is_not_there_is_said_so(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree_of(memory)
    assert run(hmn, ["inspect", str(memory), "--fact", "123"]) == 1
    assert "123" in one_line(capsys)
    assert tree_of(memory) == before


@pytest.mark.parametrize("url", ["{tmp}/nothing", "nosuchscheme://bucket/memory", "{tmp}/a-file"])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_url_without_a_memory_is_said_so(
    command: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("not a folder")
    before = tree_of(tmp_path)
    assert run(hmn, [command, url.format(tmp=tmp_path)]) in (1, 2)
    one_line(capsys)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.tsv", b""),
        ("blank.tsv", b"\n\n\n"),
        ("empty.jsonl", b""),
        ("header.csv", b"subject,relation,object\n"),
        ("image.tsv", b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
        ("two.tsv", b"a\tb\nc\td\n"),
        ("broken.tsv.gz", b"\x1f\x8b\x08\x00broken"),
        ("broken.tsv.zst", b"\x28\xb5\x2f\xfdbroken"),
        ("broken.parquet", b"PAR1 and then nothing"),
        ("keys.jsonl", b'{"a": 1}\n'),
    ],
)
def test_input_without_facts_makes_no_memory(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    before = tree_of(tmp_path)
    assert run(hmn, ["ingest", str(tmp_path / name), "--memory", str(tmp_path / "memory")]) in (1, 2)
    assert name in one_line(capsys) or content.strip() == b""
    assert tree_of(tmp_path) == before


def test_strict_names_file_and_line_of_the_first_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "facts.tsv").write_text(ROWS + "only\ttwo\n")
    before = tree_of(tmp_path)
    arguments = ["ingest", str(tmp_path / "facts.tsv"), "--memory", str(tmp_path / "memory"), "--strict"]
    assert run(hmn, arguments) == 1
    assert "facts.tsv, line 301" in one_line(capsys)
    assert not (tmp_path / "memory" / "manifests").exists()
    assert {path: known for path, known in tree_of(tmp_path).items() if not path.startswith("memory")} == before


CONFIG = 'run_dir = "{tmp}/run"\n[memory]\nurl = "{tmp}/memory"\n[data]\nquestions = "builtin:geonames"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONFIG + "[train]\nepoch = 1\n", "train.epochs"),
        (CONFIG + "[train]\nepochs = 0\n", "train.epochs >= 1"),
        (CONFIG + '[train]\nepochs = "four"\n', "whole number"),
        (CONFIG + '[train]\ncandidates = "some"\n', "train.candidates"),
        (CONFIG + '[model]\nencoder = "ngrams"\n', "ngram"),
        (CONFIG.replace("[data]", 'index = "exat"\n[data]'), "exact"),
        (CONFIG.replace('[data]\nquestions = "builtin:geonames"\n', ""), "data"),
        (CONFIG + "[train\n", "not TOML"),
        (CONFIG.replace("builtin:geonames", "builtin:geonmes"), "geonames"),
    ],
)
def test_a_bad_config_starts_nothing(
    text: str, said: str, tmp_path: Path, memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text(text.replace("{tmp}", str(tmp_path)))
    before = tree_of(tmp_path)
    assert run(hmn, ["train", str(tmp_path / "bad.toml")]) == 2
    assert said in one_line(capsys)
    assert tree_of(tmp_path) == before


def test_a_config_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(hmn, ["train", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in one_line(capsys)


# What root may always do must be tested in a process that gave it up.


def hmn_process(*arguments: str, without_rights: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    if without_rights and os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and setpriv (util-linux) is not here to give that up")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in errors[0]
    return errors[0]


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.mark.parametrize("arguments", [["verify", "{memory}"], ["ingest", "{facts}", "--memory", "{memory}"]])
@pytest.mark.parametrize("folder", ["", "manifests", "facts"])
def test_a_folder_without_read_rights_is_one_line(
    folder: str, arguments: list[str], memory: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.tsv").write_text("new\tNew\trelation\tthing\tThing\n")
    before = tree_of(tmp_path)
    with mode(memory / folder, 0o000):
        words = [word.format(memory=memory, facts=tmp_path / "more.tsv") for word in arguments]
        done = hmn_process(*words, without_rights=True)
    assert done.returncode == 1, done.stderr
    assert "ermission" in error_of(done)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize("folder", ["facts", "manifests"])
def test_a_folder_without_write_rights_is_one_line(folder: str, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "more.tsv").write_text("new\tNew\trelation\tthing\tThing\n")
    before = tree_of(tmp_path)
    with mode(memory / folder, 0o500):
        done = hmn_process("ingest", str(tmp_path / "more.tsv"), "--memory", str(memory), without_rights=True)
    assert done.returncode == 1, done.stderr
    assert "ermission" in error_of(done)
    after = tree_of(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert run(hmn, ["verify", str(memory)]) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 512 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small filesystem can only be mounted by root, and not in every sandbox")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_memory_stays_as_it_was(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "first.tsv").write_text("a\tA\trelation\tb\tB\n")
    (tmp_path / "more.tsv").write_text(ROWS * 1 + "".join(f"x{i}\tName {i}\tr\ty{i}\tY {i}\n" for i in range(5_000)))
    memory = small_disk / "memory"
    assert hmn_process("ingest", str(tmp_path / "first.tsv"), "--memory", str(memory)).returncode == 0
    before = tree_of(memory)
    done = hmn_process("ingest", str(tmp_path / "more.tsv"), "--memory", str(memory))
    assert done.returncode == 1, done.stderr
    assert "space" in error_of(done)
    after = tree_of(memory)
    assert {path: after.get(path) for path in before} == before
    assert run(hmn, ["verify", str(memory)]) == 0


def test_a_cluster_that_nobody_runs_is_said_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "facts.tsv").write_text(ROWS)
    ended = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "ingest", "facts.tsv", "--memory", "kb", "--backend", "ray"],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=120,  # Ray alone would try for minutes
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: expected to join the Ray cluster at RAY_ADDRESS=127.0.0.1:1, found: ")
    assert not (tmp_path / "kb" / "manifests").exists()
