"""Names of the files that hold built indexes; apart from them, so that upkeep need not load what searches need."""

from collections.abc import Iterator, Sequence

import xxhash

from memory_store.keeping import pays
from memory_store.manifest_format import Manifest, Part

__all__ = ["INDEX_FOLDER", "index_name", "main_name", "main_names", "main_of", "main_parts"]

INDEX_FOLDER = "indexes"


def main_parts(manifest: Manifest) -> tuple[Part, ...]:
    """The vectors parts that the main index covers: all but those of upserts, which are searched beside it."""
    return manifest.vectors[: len(manifest.vectors) - manifest.delta_parts]


def main_name(parts: Sequence[Part]) -> str:
    """A name for these parts by their content: generations with the same main parts share their index files."""
    return xxhash.xxh3_64_hexdigest("\n".join(part.checksum for part in parts).encode())


def main_names(manifest: Manifest) -> Iterator[str]:
    """The names under which a shard of this generation looks for an index: that of its main parts, and of the first of
    them, for one that was saved before the others came and serves on (see `keeping`)."""
    parts = main_parts(manifest)
    for count in range(len(parts), -1, -1):
        beside = sum(part.rows for part in parts[count:])
        if beside and not pays(sum(part.rows for part in parts[:count]), beside=beside, gone=0):
            break
        yield main_name(parts[:count])


def index_name(main: str, key: str) -> str:
    """The path, within a memory, of an index over rows of these main parts."""
    return f"{INDEX_FOLDER}/{main}-{key}.safetensors"


def main_of(path: str) -> str:
    """The name of the main parts that a file of the folder belongs to."""
    return path.removeprefix(f"{INDEX_FOLDER}/").partition("-")[0]
