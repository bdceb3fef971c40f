"""The real data through ingest: counts that are known, questions whose facts are there, nothing lost."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from memory_store.manifest import read_manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory
from pipeline.facts import fact_ids
from pipeline.ingest import ingest
from pipeline.sources.questions import read_questions


def ids_in(url: str) -> pa.Array:
    storage = Storage(url)
    columns = [table["fact_id"] for table in scan_facts(storage, read_manifest(storage), ["fact_id"])]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks]).combine_chunks()


def coverage(questions: pa.Table, url: str) -> float:
    """The fraction of the questions whose fact the memory holds."""
    wanted = fact_ids(questions["subject_id"].combine_chunks(), questions["relation"].combine_chunks())
    return float(np.mean(np.asarray(pc.is_in(pa.array(wanted), ids_in(url)))))


@pytest.fixture(scope="module")
def simple_questions(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("memories") / "freebase-SQ")
    folder = shared_data / "simplequestions"
    summary = ingest(str(folder / "freebase-SQ.txt.gz"), url, names=str(folder / "names.tsv.gz"))
    assert (summary.facts, summary.triples, summary.duplicates, summary.quarantined) == (81_011, 92_595, 0, 0)
    return url


def test_every_simplequestions_question_has_its_fact_in_memory(simple_questions: str, shared_data: Path) -> None:
    folder = str(shared_data / "simplequestions")
    assert coverage(read_questions(folder, "valid"), simple_questions) == 1.0
    assert coverage(read_questions(folder, "train"), simple_questions) == 1.0
    assert verify_memory(simple_questions).ok


def test_most_simplequestions_subjects_have_a_name(simple_questions: str) -> None:
    storage = Storage(simple_questions)
    columns = ["subject_id", "subject"]
    named = [
        pc.not_equal(table[columns[0]], table[columns[1]])
        for table in scan_facts(storage, read_manifest(storage), columns)
    ]
    assert 0.8 < np.mean(np.concatenate([np.asarray(part) for part in named])) < 1.0


def test_freebaseqa_questions_are_read_in_the_same_ids(shared_data: Path) -> None:
    questions = read_questions(str(shared_data / "freebaseqa"), "valid")
    assert questions.num_rows == 2_048
    assert pc.all(pc.match_substring_regex(questions["subject_id"], r"^[mg]\.")).as_py()


def test_metaqa_is_merged_into_a_memory_that_has_facts(
    simple_questions: str, shared_data: Path, tmp_path: Path
) -> None:
    url = str(tmp_path / "memory")
    folder = str(shared_data / "metaqa")
    alone = ingest(folder, url)
    assert (alone.triples, alone.quarantined, len(alone.skipped)) == (130_017, 0, 2)
    simple = shared_data / "simplequestions"
    both = ingest(str(simple / "freebase-SQ.txt.gz"), url, names=str(simple / "names.tsv.gz"))
    assert both.facts == alone.facts + 81_011
    assert set(ids_in(simple_questions).to_pylist()) < set(ids_in(url).to_pylist())
    assert ingest(folder, url).committed is False
