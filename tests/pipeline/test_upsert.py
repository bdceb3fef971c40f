"""Facts of sources go into a living memory through the same gate as an ingest, and a later ingest respects them."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store.errors import EmptyInput, InputError, UnknownFact, VersionMismatch
from memory_store.manifest import read_manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory
from pipeline.embed import embed
from pipeline.facts import fact_id_of
from pipeline.ingest import ingest
from pipeline.upsert import delete, upsert


def encode(facts: pa.Table) -> np.ndarray:
    ids_N = facts["fact_id"].to_numpy()
    return np.stack([ids_N % 7, ids_N % 5], axis=1).astype(np.float32)


def objects(url: str) -> dict[str, list[str]]:
    """What every fact says now."""
    storage = Storage(url)
    rows = [row for table in scan_facts(storage, read_manifest(storage)) for row in table.to_pylist()]
    return {f"{row['subject_id']} {row['relation']}": row["objects"] for row in rows}


@pytest.fixture
def memory(tmp_path: Path) -> str:
    (tmp_path / "facts.tsv").write_text(
        "peru\tcapital\tLima\nperu\tcity\tCusco\nperu\tcity\tIca\nmali\tcapital\tBamako\n"
    )
    url = str(tmp_path / "kb")
    ingest(str(tmp_path / "facts.tsv"), url)
    embed(url, lambda: encode, fingerprint="parity", dim=2)
    return url


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_an_upsert_replaces_what_a_fact_says_and_adds_what_is_new(memory: str, tmp_path: Path) -> None:
    source = write(tmp_path / "news.tsv", "peru\tcity\tTacna\nchad\tcapital\tN'Djamena\nchad\tcapital\n")
    summary = upsert([source], memory, encode, fingerprint="parity")
    assert (summary.generation, summary.facts, summary.triples, summary.quarantined) == (3, 2, 2, 1)
    assert objects(memory) == {
        "peru capital": ["Lima"],
        "peru city": ["Tacna"],
        "mali capital": ["Bamako"],
        "chad capital": ["N'Djamena"],
    }
    quarantine = (Path(memory) / str(summary.quarantine)).read_text()
    assert '"line": 3' in quarantine
    assert verify_memory(memory).problems == ()


def test_a_delete_takes_ids_and_triples_and_refuses_what_is_not_there(memory: str, tmp_path: Path) -> None:
    source = write(tmp_path / "gone.tsv", "peru\tcity\tCusco\n")
    summary = delete([source], memory, fact_ids=[fact_id_of("mali", "capital")])
    assert (summary.facts, summary.committed) == (2, True)
    assert objects(memory).keys() == {"peru capital"}
    with pytest.raises(UnknownFact, match="does not hold"):
        delete([source], memory)
    with pytest.raises(EmptyInput, match="nothing to delete"):
        delete([], memory)


def test_an_ingest_merges_with_what_is_live_and_brings_back_only_what_it_is_given(memory: str, tmp_path: Path) -> None:
    delete([], memory, fact_ids=[fact_id_of("mali", "capital"), fact_id_of("peru", "city")])
    upsert([write(tmp_path / "a.tsv", "peru\tcapital\tLima2\n")], memory, encode, fingerprint="parity")
    summary = ingest(write(tmp_path / "b.tsv", "peru\tcapital\tCusco\nchad\tcapital\tN'Djamena\n"), memory)
    assert summary.facts == 2
    assert objects(memory) == {"peru capital": ["Lima2", "Cusco"], "chad capital": ["N'Djamena"]}
    again = ingest(str(tmp_path / "facts.tsv"), memory)
    assert (again.committed, again.facts) == (True, 4)


def test_an_ingest_after_a_delete_of_its_facts_brings_them_back(memory: str, tmp_path: Path) -> None:
    delete([], memory, fact_ids=[fact_id_of("mali", "capital")])
    assert "mali capital" not in objects(memory)
    assert ingest(str(tmp_path / "facts.tsv"), memory).committed
    assert objects(memory)["mali capital"] == ["Bamako"]


def test_what_does_not_fit_the_memory_is_refused(memory: str, tmp_path: Path) -> None:
    source = write(tmp_path / "news.tsv", "peru\tcity\tTacna\nchad\tcapital\n")
    with pytest.raises(VersionMismatch, match=r"parity, found other; name the run"):
        upsert([source], memory, encode, fingerprint="other")
    with pytest.raises(InputError, match=r"news.tsv, line 2"):
        upsert([source], memory, encode, fingerprint="parity", strict=True)
    assert read_manifest(Storage(memory)).generation == 2


def test_sources_whose_rows_are_all_rejected_are_refused_with_the_file_that_says_why(
    memory: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.tsv").write_bytes(b"peru\tcity\t\xff\nmali\tcity\t\xfe\n")
    said = r"no facts in .*bad.tsv; all 2 rows were rejected, see (?P<file>\S+quarantine/write-\w+\.jsonl)$"
    with pytest.raises(EmptyInput, match=said) as refused:
        upsert([str(tmp_path / "bad.tsv")], memory, encode, fingerprint="parity")
    found = re.search(said, str(refused.value))
    assert found is not None
    assert "not UTF-8" in Path(found["file"]).read_text()
