"""`hmn bench kb`: three million real triples, from the raw file to the first answer, and what they cost in accuracy."""

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from deploy.bench.process_memory import run_measured
from deploy.console import Console, duration, size
from deploy.options import examples, grouping_option, json_option
from memory_store.errors import HmnError, InputError
from memory_store.progress import Progress, silent

__all__ = ["REASONS", "Lost", "command", "reason_of", "run_kb_bench"]

WHOLE, SMALL = "kb/facts-3M.tsv.zst", "simplequestions/freebase-FB500K.txt.gz"
NAMES = "simplequestions/names.tsv.gz"

REASONS = {
    "not held": "the memory does not hold the path that was asked for",
    "same answer": "what was read leads to the same objects, by another subject or relation",
    "same name": "what was read is about another thing of the very same name, or says it in another source's words",
    "named too": "the name of what was read stands in the question too",
    "misread": "the question names neither what was read nor anything like it",
}
"""Why a question is answered wrongly by a larger memory: of these, in this order, the first that holds."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A question that the small memory answers and the whole one does not, with the reason (a key of REASONS)."""

    question: str
    gold_subject: str | None
    gold_relation: str
    read_subject: str | None
    read_relation: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A memory made from files. Seconds of the commands, and the most that all their processes held."""

    facts: int
    triples: int
    ingest_s: float
    embed_s: float
    ingest_peak_bytes: int
    embed_peak_bytes: int


def reason_of(
    question: str,
    *,
    is_held: bool,
    gold_subject: str | None,
    read_subject: str | None,
    gold_objects: Sequence[str],
    read_objects: Sequence[str],
) -> str:
    """Why a question was answered wrongly; pure. Names are compared without case and without signs."""
    if not is_held:
        return "not held"
    if {_plain(name) for name in gold_objects} & {_plain(name) for name in read_objects} - {""}:
        return "same answer"
    read = _plain(read_subject or "")
    if read and read == _plain(gold_subject or ""):
        return "same name"
    if read and f" {read} " in f" {_plain(question)} ":
        return "named too"
    return "misread"


def run_kb_bench(
    data: Path, run: Path, *, folder: Path, grouping: str = "relation", progress: Progress = silent
) -> dict[str, Any]:
    """Build both memories with the model of `run`, ask the validation questions of both, and compare.

    data: the folder with kb/ and simplequestions/. folder: where the memories are made; one that is there already is
    not made again. grouping: of both, as `hmn ingest` takes it. Ingest and embed run in processes of their own.
    InputError when a file is missing.
    """
    for needed in (WHOLE, SMALL, NAMES):
        if not (data / needed).is_file():
            raise InputError(f"expected {needed} in {data}, found no such file; name the folder with --data")
    sources = {"whole": data / WHOLE, "small": data / SMALL}
    memories = {name: folder / (name if grouping == "relation" else f"{name}-{grouping}") for name in sources}
    built = {}
    for number, (name, source) in enumerate(sources.items()):
        built[name] = _build(source, data / NAMES, memories[name], run, grouping)
        progress("build", number + 1, len(sources), unit="memories")
    first_answer_s = _first_answer_s(run, memories["whole"])
    found = {name: _evaluate(run, memories[name], data / "simplequestions", progress) for name in ("small", "whole")}
    lost, gained = _compared(found, memories["whole"])
    whole = built["whole"]
    return {
        "grouping": grouping,
        "whole": asdict(whole),
        "small": asdict(built["small"]),
        "triples_per_second": whole.triples / whole.ingest_s,
        "facts_embedded_per_second": whole.facts / whole.embed_s,
        "raw_file_to_first_answer_s": whole.ingest_s + whole.embed_s + first_answer_s,
        "accuracy": {name: _score(evaluation) for name, evaluation in found.items()},
        "lost": len(lost),
        "gained": gained,
        "reasons": dict(Counter(one.reason for one in lost)),
        "lost_questions": [asdict(one) for one in lost],
    }


def _build(source: Path, names: Path, memory: Path, run: Path, grouping: str) -> _Built:
    record = memory.with_suffix(".json")
    if record.exists():
        return _Built(**json.loads(record.read_text(encoding="utf-8")))
    shutil.rmtree(memory, ignore_errors=True)
    began = time.monotonic()
    into = ["--memory", str(memory), "--backend", "local"]
    ingest_peak = _hmn(["ingest", str(source), "--names", str(names), "--grouping", grouping, *into])
    ingested = time.monotonic()
    embed_peak = _hmn(["embed", "--model", str(run), *into])
    embedded = time.monotonic()
    from memory_store.manifest import read_manifest
    from memory_store.parts import scan_facts
    from memory_store.storage import Storage

    storage = Storage(str(memory))
    manifest = read_manifest(storage)
    objects = (table["object_ids"] for table in scan_facts(storage, manifest, ["object_ids"]))
    built = _Built(
        facts=manifest.fact_count,
        triples=sum(sum(len(chunk.flatten()) for chunk in column.chunks) for column in objects),
        ingest_s=ingested - began,
        embed_s=embedded - ingested,
        ingest_peak_bytes=ingest_peak,
        embed_peak_bytes=embed_peak,
    )
    record.write_text(json.dumps(asdict(built)), encoding="utf-8")
    return built


def _hmn(args: list[str]) -> int:
    status, peak = run_measured([sys.executable, "-m", "deploy.cli", *args], every_s=1.0)
    if status != 0:
        raise HmnError(f"`hmn {' '.join(args[:2])}` ended with exit status {status}; its message is above")
    return peak


def _first_answer_s(run: Path, memory: Path) -> float:
    """Seconds to load the model, open the memory and answer one question."""
    from trainer.run import open_run

    began = time.monotonic()
    with open_run(run, memory=str(memory), backend="local") as opened:
        query_BD = opened.encoder.ask(["where was barack obama born"]).numpy()
        opened.memory.fetch(opened.memory.search(query_BD, 1).fact_ids_BK[0])
    return time.monotonic() - began


def _evaluate(run: Path, memory: Path, questions: Path, progress: Progress) -> Any:
    from pipeline.sources.questions import read_questions
    from trainer.data import Questions
    from trainer.evaluation import evaluate_questions
    from trainer.run import open_run

    with open_run(run, memory=str(memory), backend="local") as opened:
        asked = Questions.of(read_questions(str(questions), "valid"))
        return evaluate_questions(
            opened.memory, opened.encoder, asked, split="valid", k=opened.config.train.k, progress=progress
        )


def _score(evaluation: Any) -> dict[str, Any]:
    overall = evaluation.overall
    return {
        "questions": overall.questions,
        "path_accuracy": overall.path_accuracy,
        "interval": overall.interval,
        "answer_accuracy": overall.answer_accuracy,
        "recall": overall.recall,
        "not_held": evaluation.missing,
        "path_accuracy_of_held": overall.path_accuracy
        * overall.questions
        / max(overall.questions - evaluation.missing, 1),
    }


def _compared(found: Mapping[str, Any], whole: Path) -> tuple[list[Lost], int]:
    """(what the whole memory loses, how many questions it answers that the small one does not)"""

    def key(one: Any) -> tuple[str, str, str]:
        return one.question, one.gold_subject_id, one.gold_relation

    wrong = {name: {key(one): one for one in evaluation.wrong} for name, evaluation in found.items()}
    lost = [one for at, one in wrong["whole"].items() if at not in wrong["small"]]
    objects = _gold_objects(whole, lost)
    explained = [
        Lost(
            question=one.question,
            gold_subject=one.gold_subject,
            gold_relation=one.gold_relation,
            read_subject=one.read_subject,
            read_relation=one.read_relation,
            reason=reason_of(
                one.question,
                is_held=gold is not None,
                gold_subject=one.gold_subject,
                read_subject=one.read_subject,
                gold_objects=gold or (),
                read_objects=one.read_objects,
            ),
        )
        for one, gold in zip(lost, objects, strict=True)
    ]
    return explained, len(wrong["small"].keys() - wrong["whole"].keys())


def _gold_objects(memory: Path, lost: Sequence[Any]) -> list[list[str] | None]:
    """What each gold path leads to, by name or else by id; None where the memory does not hold the path."""
    import numpy as np
    import pyarrow as pa

    from memory_store.manifest import read_manifest
    from memory_store.parts import scan_facts
    from memory_store.storage import Storage
    from pipeline.facts import fact_id_of, fact_ids

    paths = [fact_id_of(one.gold_subject_id, one.gold_relation) for one in lost]
    storage = Storage(str(memory))
    held: dict[int, list[str]] = {}
    for table in scan_facts(storage, read_manifest(storage), ["subject_id", "relation", "object_ids", "objects"]):
        # By path, not by fact_id: where a fact is one triple, a path has many.
        path_N = fact_ids(table["subject_id"].combine_chunks(), table["relation"].combine_chunks())
        at = np.flatnonzero(np.isin(path_N, paths))
        for path, row in zip(path_N[at].tolist(), table.take(pa.array(at)).to_pylist(), strict=True):
            named = row["objects"] or [None] * len(row["object_ids"])
            names = [name or identity for name, identity in zip(named, row["object_ids"], strict=True)]
            held.setdefault(path, []).extend(names)
    return [held.get(path) for path in paths]


def _plain(text: str) -> str:
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


@click.command(
    "kb",
    short_help="Three million real triples, from the raw file to the first answer.",
    epilog=examples(
        "hmn bench kb --data data --run runs/simplequestions",
        "hmn bench kb --data data --run runs/simplequestions --grouping triple",
        "hmn bench kb --data data --run runs/simplequestions --folder memories/kb --json > kb.json",
    ),
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder with kb/facts-3M.tsv.zst and simplequestions/.",
)
@click.option(
    "--run",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="A run trained on SimpleQuestions; its model embeds the facts.",
)
@grouping_option
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the memories here; made once.")
@json_option
@click.pass_obj
def command(console: Console, data: Path, run: Path, grouping: str, folder: Path | None) -> None:
    """Ingest and embed every triple of the file, ask the validation questions of SimpleQuestions, and compare with the
    memory freebase-FB500K: each question that is lost gets a reason.
    """
    work = folder or Path(tempfile.mkdtemp(prefix="hmn-kb-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        result = run_kb_bench(data, run, folder=work, grouping=grouping, progress=console.progress)
    finally:
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)
    console.result(result, lambda: _show(console, result))


def _show(console: Console, result: Mapping[str, Any]) -> None:
    whole = result["whole"]
    console.pairs(
        {
            "ingest": f"{whole['triples']:,} triples in {duration(whole['ingest_s'])} "
            f"({result['triples_per_second']:,.0f} a second), peak {size(whole['ingest_peak_bytes'])}",
            "embed": f"{whole['facts']:,} facts in {duration(whole['embed_s'])} "
            f"({result['facts_embedded_per_second']:,.0f} a second), peak {size(whole['embed_peak_bytes'])}",
            "raw file to first answer": duration(result["raw_file_to_first_answer_s"]),
            **{
                f"path accuracy, {name}": f"{score['path_accuracy']:.2%} ({score['interval'][0]:.2%} to "
                f"{score['interval'][1]:.2%}) of {score['questions']:,}; without the {score['not_held']:,} not "
                f"held {score['path_accuracy_of_held']:.2%}"
                for name, score in result["accuracy"].items()
            },
            "lost, gained": f"{result['lost']:,} questions lost by the whole memory, {result['gained']:,} gained",
        }
    )
    asked = result["accuracy"]["whole"]["questions"]
    rows = [
        (reason, result["reasons"].get(reason, 0), f"{result['reasons'].get(reason, 0) / asked:.2%}", meaning)
        for reason, meaning in REASONS.items()
    ]
    console.table(("lost because", "questions", "points", "meaning"), rows)
