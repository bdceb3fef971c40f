"""Sources into a new generation of facts: staged by piece, reduced by bucket, committed once."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow.compute as pc

from memory_store.errors import (
    CommitUnknown,
    CorruptFile,
    EmptyInput,
    GenerationConflict,
    HmnError,
    InputError,
    StorageFailed,
)
from memory_store.manifest import (
    Manifest,
    Part,
    ReplaceFacts,
    apply_change,
    commit_beside_compactions,
    current_generation,
)
from memory_store.parts import scan_facts
from memory_store.progress import Progress, silent
from memory_store.storage import Storage
from memory_store.work import check_backend, run_steps
from pipeline.distinct import refuse_duplicates, same_facts
from pipeline.features import FEATURES_VERSION
from pipeline.plan import Plan, plan_ingest
from pipeline.quarantine import write_quarantine
from pipeline.sources.files import SEGMENT_BYTES
from pipeline.staging import (
    BucketFiles,
    Reduced,
    Staged,
    look_up_names,
    reduce_bucket,
    rejected_rows,
    remove_staging,
    stage_piece,
)

__all__ = ["ROWS_PER_PART", "IngestSummary", "ingest"]

ROWS_PER_PART = 65_536
"""Triples that a part is made for; what a reduce step holds in memory, about 2 KiB each with names and features."""

Answer = TypeVar("Answer")
Steps = Callable[[Callable[[], Callable[[Any], Any]], Sequence[Any]], Generator[tuple[int, Any]]]


@dataclass(frozen=True, kw_only=True)
class IngestSummary:
    """What an ingest did. generation: the one that holds the facts; committed: whether this ingest made it.

    triples: rows read from the sources; duplicates: those among them that were known or repeated; quarantined: rows
    rejected, listed in the file `quarantine` of the memory. facts, entities (subjects) and bytes: of the generation.
    skipped: files of a directory that hold no facts.
    """

    generation: int
    committed: bool
    facts: int
    entities: int
    triples: int
    duplicates: int
    quarantined: int
    quarantine: str | None
    source_bytes: int
    bytes: int
    seconds: float
    skipped: tuple[str, ...] = ()

    @property
    def rows_per_second(self) -> float:
        return self.triples / self.seconds if self.seconds else 0.0


def ingest(
    sources: str | Sequence[str],
    url: str,
    *,
    names: str | Sequence[str] = (),
    grouping: str = "relation",
    strict: bool = False,
    backend: str = "local",
    workers: int | None = None,
    progress: Progress = silent,
    segment_bytes: int = SEGMENT_BYTES,
    rows_per_part: int = ROWS_PER_PART,
) -> IngestSummary:
    """Bring facts into the memory at `url`, merged with those it holds, and commit one generation.

    sources: files, globs, directories or URLs of triples, or builtin:geonames. names: files of (id, name) lines.
    grouping: "relation" (a fact is a subject, a relation and all its objects) or "triple". strict: the first rejected
    row is an InputError that names file and line. backend: "local" (this process) or "ray" with `workers` tasks.

    Killed and started again, it does what is missing and commits the same. Where nothing is new it commits nothing.
    Raises InputError or EmptyInput for what the sources hold, GenerationConflict if another writer committed
    meanwhile, DuplicateFact, StorageFailed. Whatever it raises, the memory is as it was.
    """
    started_s = time.monotonic()
    sources = [sources] if isinstance(sources, str) else list(sources)
    names = [names] if isinstance(names, str) else list(names)
    check_backend(backend, workers, [url, *sources, *names])
    plan = plan_ingest(
        sources,
        url,
        names=names,
        grouping=grouping,
        segment_bytes=segment_bytes,
        rows_per_part=rows_per_part,
    )
    run = _Run(plan=plan, steps=partial(run_steps, backend=backend, workers=workers), strict=strict, progress=progress)
    try:
        return run.ingest(started_s)
    except CommitUnknown:
        raise  # it may have been committed: nothing may be removed
    except (HmnError, FileNotFoundError) as error:
        remove_staging(run.storage, plan.job.folder, and_empty_memory=True)
        if isinstance(error, CorruptFile | FileNotFoundError):
            run.refuse_if_overtaken(error)
        raise


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One ingest under way."""

    plan: Plan
    steps: Steps
    strict: bool
    progress: Progress

    @property
    def storage(self) -> Storage:
        return Storage(self.plan.job.url)

    def ingest(self, started_s: float) -> IngestSummary:
        plan = self.plan
        if plan.up_to_date:
            assert plan.parent is not None, "what is up to date is there"
            remove_staging(self.storage, plan.job.folder)
            return self.summary(plan.parent, started_s)
        staged = self.stage()
        quarantine = self.quarantine(staged)
        if not any(receipt.triples for receipt in staged if receipt.source >= plan.job.known_sources):
            rejected = sum(receipt.bad for receipt in staged)
            where = f"; all {rejected:,} rows were rejected, see {self.storage.where(quarantine)}" if quarantine else ""
            raise EmptyInput(f"there are no facts in {', '.join(plan.shown_inputs):.300}{where}")
        looked_up = any(receipt.names for receipt in staged) and any(receipt.requests for receipt in staged)
        if looked_up:
            files = BucketFiles(self.storage)
            self.each_bucket(partial(look_up_names, plan.job, staged, files), "look up names")
        files = BucketFiles(self.storage)
        receipts = self.each_bucket(partial(reduce_bucket, plan.job, staged, files, looked_up), "write facts")
        parts = tuple(receipt.part for receipt in receipts if receipt.part)
        refuse_duplicates(self.storage, parts)
        manifest = self.commit(parts)
        remove_staging(self.storage, plan.job.folder)
        return self.summary(manifest, started_s, staged, receipts, quarantine)

    def refuse_if_overtaken(self, error: Exception) -> None:
        """Whoever commits first removes what others staged for the same parent: a missing file may mean we lost."""
        now, parent = current_generation(self.storage) or 0, self.plan.parent_generation
        if now != parent:
            raise GenerationConflict(
                f"another writer committed generation {now} of {self.storage.shown} while this ingest worked on "
                f"generation {parent}; run it again to merge with what is there now"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise StorageFailed(f"a file of this ingest was removed while it ran ({error}); run it again") from error

    def stage(self) -> list[Staged]:
        """The receipts of all segments, in the order of the sources."""
        pieces = self.plan.pieces
        answers: dict[int, list[Staged]] = {}
        job = self.plan.job  # what goes to other processes must not hold on to self, whose progress stays here
        with closing(self.steps(lambda: partial(stage_piece, job), pieces)) as running:
            for number, staged in running:
                answers[number] = staged
                rows = sum(receipt.triples for receipts in answers.values() for receipt in receipts)
                self.progress("read", len(answers), len(pieces), unit="pieces", note=f"{rows:,} triples")
                if self.strict and set(range(number)) <= answers.keys():
                    self.refuse_rejected(answers)
        if self.strict:
            self.refuse_rejected(answers)
        return _in_order(answers)

    def refuse_rejected(self, answers: dict[int, list[Staged]]) -> None:
        for source, row in rejected_rows(self.plan.job, _in_order(answers)):
            where = f"{self.plan.shown[source]}, line {row['line']}"
            raise InputError(
                f"{where}: {row['reason']}: {row['raw']:.200}; correct the file, or ingest without --strict"
            )

    def quarantine(self, staged: list[Staged]) -> str | None:
        if not any(receipt.bad for receipt in staged):
            return None
        rows = ((self.plan.shown[source], row) for source, row in rejected_rows(self.plan.job, staged))
        return write_quarantine(self.storage, self.plan.job.ingest_id, rows)

    def each_bucket(self, step: Callable[[int], Answer], task: str) -> list[Answer]:
        """The answers of all buckets, in their order."""
        buckets = range(self.plan.job.buckets)
        answers: dict[int, Answer] = {}
        with closing(self.steps(lambda: step, buckets)) as running:
            for number, answer in running:
                answers[number] = answer
                self.progress(task, len(answers), len(buckets), unit="parts")
        return [answers[bucket] for bucket in buckets]

    def commit(self, parts: tuple[Part, ...]) -> Manifest:
        """The generation that holds the parts: the current one if it holds the same already, else a new one."""
        plan = self.plan
        parent = plan.parent
        if parent is not None and parent.features == FEATURES_VERSION and self.is_nothing_new(parent, parts):
            for part in parts:
                self.storage.delete(part.path)
            return parent
        change = ReplaceFacts(facts=parts, grouping=plan.job.grouping, features=FEATURES_VERSION)
        note = f"ingest of {', '.join(plan.shown_inputs)}"[:500]
        return commit_beside_compactions(
            self.storage, parent, lambda base: apply_change(base, change, commit_id=plan.commit_id, note=note)
        )

    def is_nothing_new(self, parent: Manifest, parts: tuple[Part, ...]) -> bool:
        same_parts = [part.checksum for part in parent.facts] == [part.checksum for part in parts]
        if same_parts and not parent.tombstones:
            return True
        # they may only be spread over other parts
        return same_facts(self.storage, parent.facts, parts, tombstones=parent.tombstones)

    def summary(
        self,
        manifest: Manifest,
        started_s: float,
        staged: Sequence[Staged] = (),
        receipts: Sequence[Reduced] = (),
        quarantine: str | None = None,
    ) -> IngestSummary:
        read = sum(receipt.read for receipt in receipts)
        return IngestSummary(
            generation=manifest.generation,
            committed=manifest.generation != self.plan.parent_generation,
            facts=manifest.fact_count,
            entities=sum(receipt.subjects for receipt in receipts) or _count_entities(self.storage, manifest),
            triples=read,
            duplicates=read - sum(receipt.new for receipt in receipts),
            quarantined=sum(receipt.bad for receipt in staged),
            quarantine=quarantine,
            source_bytes=self.plan.source_bytes,
            bytes=sum(part.bytes for part in manifest.facts),
            seconds=time.monotonic() - started_s,
            skipped=self.plan.skipped,
        )


def _in_order(answers: dict[int, list[Staged]]) -> list[Staged]:
    receipts = [receipt for staged in answers.values() for receipt in staged]
    return sorted(receipts, key=lambda receipt: (receipt.source, receipt.segment))


def _count_entities(storage: Storage, manifest: Manifest) -> int:
    """Every entity's facts are in one part of an ingest; what was upserted since may name the same entities."""
    tables = scan_facts(storage, manifest, ["subject_id"])
    if manifest.delta_parts:
        return len(set().union(*(pc.unique(table["subject_id"]).to_pylist() for table in tables)))
    return sum(pc.count_distinct(table["subject_id"]).as_py() for table in tables)
