"""`hmn inspect`: generations, parts, checksums and sizes of a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deploy.console import Console, size
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from memory_store.manifest import Manifest
    from memory_store.upkeep import GenerationReport, MemoryReport

__all__ = ["command"]


@click.command(
    "inspect",
    short_help="What a memory holds.",
    epilog=examples(
        "hmn inspect memories/geonames",
        "hmn inspect s3://bucket/memory --generation 3 --parts",
        "hmn inspect memories/geonames --fact 1234567890123456789",
    ),
)
@click.argument("url", metavar="URL")
@click.option("--generation", type=click.IntRange(min=1), help="Show this one in full; default: the current one.")
@click.option("--parts", is_flag=True, help="List every part with its rows, bytes and checksum.")
@click.option("--fact", "fact_ids", type=int, multiple=True, metavar="ID", help="Show this fact instead; repeatable.")
@json_option
@click.pass_obj
def command(console: Console, url: str, generation: int | None, parts: bool, fact_ids: tuple[int, ...]) -> None:
    """Show what is at URL from its manifests: its history (when, who, what), facts, vectors, encoder, pins, sizes.

    Says which processes have the memory open, and at which generation. Reads no part unless facts are asked for: `hmn
    verify` does that.
    """
    from memory_store.errors import GenerationNotFound
    from memory_store.upkeep import inspect_memory

    if fact_ids:
        facts = _read_facts(url, generation, fact_ids)
        console.result({"facts": facts}, lambda: _show_facts(console, facts))
        return
    report = inspect_memory(url)
    by_number = {found.generation: found for found in report.generations}
    shown = max(by_number) if generation is None else generation
    if shown not in by_number:
        raise GenerationNotFound(
            f"expected generation {shown} at {url}, found {_ranges(sorted(by_number))}; name one of these"
        )
    console.result(report, lambda: _show(console, report, by_number[shown], parts))


def _show(console: Console, report: MemoryReport, chosen: GenerationReport, parts: bool) -> None:
    count = len(report.generations)
    console.write(f"{report.url}: {count} generation{'s'[: count > 1]}, {size(report.bytes)} in part files")
    if report.unnamed_files:
        console.write(f"{report.unnamed_files} files ({size(report.unnamed_bytes)}) belong to no generation")
    console.write()
    console.table(
        ("generation", "facts", "vectors", "parts", "size", "pins", "made", "by", "what", "note"),
        [_line(found) for found in report.generations],
    )
    for found in report.generations:
        if found.problem:
            console.write(f"generation {found.generation}: {found.problem}")
        for reader in found.readers:
            console.write(f"generation {found.generation} is read by {reader}")
    if chosen.manifest is None:
        return
    console.write()
    console.pairs(_facts_about(chosen.manifest))
    if parts:
        console.write()
        console.table(
            ("part", "rows", "size", "checksum"),
            [
                (part.path, part.rows, size(part.bytes), part.checksum)
                for part in (*chosen.manifest.facts, *chosen.manifest.vectors, *chosen.manifest.tombstones)
            ],
        )


def _read_facts(url: str, generation: int | None, fact_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from memory_store.errors import UnknownFact
    from memory_store.manifest import read_manifest
    from memory_store.parts import FACTS_SCHEMA, scan_facts
    from memory_store.storage import Storage

    storage = Storage(url)
    manifest = read_manifest(storage, generation)
    columns = [name for name in FACTS_SCHEMA.names if name != "features"]
    found: dict[int, dict[str, Any]] = {}
    for table in scan_facts(storage, manifest, columns):
        rows = table.filter(pc.is_in(table["fact_id"], pa.array(fact_ids, pa.int64())))
        found.update((row["fact_id"], row) for row in rows.to_pylist())
    for fact_id in fact_ids:
        if fact_id not in found:
            raise UnknownFact(
                f"expected fact {fact_id} in generation {manifest.generation} of {url}, found no such id; "
                "`hmn ask` shows the ids of the facts it read"
            )
    return [found[fact_id] for fact_id in fact_ids]


def _show_facts(console: Console, facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        # An id is a name, not a quantity: no separators in it.
        texts = {name: [str(value)] if isinstance(value, str | int) else value for name, value in fact.items()}
        console.pairs({name: ", ".join(map(str, text or ["-"])) for name, text in texts.items()})


def _line(found: GenerationReport) -> tuple[object, ...]:
    name = f"{found.generation} *" if found.current else str(found.generation)
    manifest = found.manifest
    if manifest is None:
        return (name, None, "unreadable", None, size(found.bytes), ", ".join(found.pins), "", "", "", "")
    vectors = f"{manifest.dtype} [{manifest.dim}]" if manifest.dtype else "none"
    count = len(manifest.facts) + len(manifest.vectors)
    pins = ", ".join(found.pins) or "-"
    return (
        name,
        manifest.fact_count,
        vectors,
        count,
        size(found.bytes),
        pins,
        manifest.created_at,
        manifest.author or "-",
        manifest.operation or "-",
        manifest.note,
    )


def _facts_about(manifest: Manifest) -> dict[str, object]:
    return {
        "generation": manifest.generation,
        "format version": manifest.format_version,
        "parent": manifest.parent,
        "commit id": manifest.commit_id,
        "facts": manifest.fact_count,
        "grouping": manifest.grouping,
        "features": manifest.features,
        "dimension": manifest.dim or None,
        "dtype": manifest.dtype,
        "encoder": manifest.encoder,
        "largest norm": manifest.max_norm,
        "parts": f"{len(manifest.facts)} of facts, {len(manifest.vectors)} of vectors",
        "fresh parts": f"{manifest.delta_parts}, searched beside the main index",
        "dead rows": sum(part.rows for part in manifest.tombstones),
        "made by": f"{manifest.author or '-'}, {manifest.operation or '-'}",
    }


def _ranges(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} from {numbers[0]} to {numbers[-1]}"


if __name__ == "__main__":
    main(command)
