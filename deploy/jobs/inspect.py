"""`hmn inspect`: generations, parts, checksums and sizes of a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    epilog=examples("hmn inspect memories/geonames", "hmn inspect s3://bucket/memory --generation 3 --parts"),
)
@click.argument("url", metavar="URL")
@click.option("--generation", type=click.IntRange(min=1), help="Show this one in full; default: the current one.")
@click.option("--parts", is_flag=True, help="List every part with its rows, bytes and checksum.")
@json_option
@click.pass_obj
def command(console: Console, url: str, generation: int | None, parts: bool) -> None:
    """Show what is at URL from its manifests: generations, facts, vectors, encoder, pins, sizes.

    Reads no part: `hmn verify` does that.
    """
    from memory_store.errors import GenerationNotFound
    from memory_store.upkeep import inspect_memory

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
        ("generation", "facts", "vectors", "parts", "size", "pins", "made", "note"),
        [_line(found) for found in report.generations],
    )
    for found in report.generations:
        if found.problem:
            console.write(f"generation {found.generation}: {found.problem}")
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
                for part in (*chosen.manifest.facts, *chosen.manifest.vectors)
            ],
        )


def _line(found: GenerationReport) -> tuple[object, ...]:
    name = f"{found.generation} *" if found.current else str(found.generation)
    manifest = found.manifest
    if manifest is None:
        return (name, None, "unreadable", None, size(found.bytes), ", ".join(found.pins), "", "")
    vectors = f"{manifest.dtype} [{manifest.dim}]" if manifest.dtype else "none"
    count = len(manifest.facts) + len(manifest.vectors)
    pins = ", ".join(found.pins) or "-"
    return (name, manifest.fact_count, vectors, count, size(found.bytes), pins, manifest.created_at, manifest.note)


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
    }


def _ranges(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} from {numbers[0]} to {numbers[-1]}"


if __name__ == "__main__":
    main(command)
