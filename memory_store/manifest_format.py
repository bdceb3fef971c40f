"""The manifest of a generation as JSON: what it holds, how it is written, and what is refused on reading."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import xxhash

from memory_store.errors import CorruptFile, InputError
from memory_store.vectors import DTYPES

__all__ = ["FORMAT_VERSION", "GROUPINGS", "LAST_GENERATION", "Manifest", "Part", "from_bytes", "to_bytes"]

FORMAT_VERSION = 2
GROUPINGS = ("relation", "triple")
LAST_GENERATION = 99_999_999  # eight digits in the file name

_READ_VERSIONS = (1, 2)
_NEW_IN_2 = {"delta_parts", "operation", "author"}
_MOST_ROWS = 1 << 40
_MOST_BYTES = 1 << 50
_MOST_DIMENSIONS = 1 << 20
_MOST_MANIFEST_BYTES = 1 << 28
_LONGEST_TEXT = 10_000
_CHECKSUM = re.compile(r"xxh3-128:[0-9a-f]{32}")
# Every segment starts with a letter or digit, so that neither .. nor an absolute path can be written.
_PART_PATH = re.compile(r"(facts|vectors|tombstones)(/[A-Za-z0-9][A-Za-z0-9._=-]{0,199})+\.arrow")
_RESTORE = "restore it from a copy, or delete it to go back to the generation before"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Arrow file of a generation. checksum: "xxh3-128:<hex>" of the file's bytes."""

    path: str
    rows: int
    bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One generation: an immutable list of parts.

    vectors[i] holds exactly the fact ids of facts[i], in the same order. Facts that are not embedded have dim=0,
    dtype=None, encoder=None, vectors=(). encoder: fingerprint of the fact encoder, None for vectors given by hand.
    parent_commit: the commit id of the parent, so that a history can be told from one rewritten meanwhile.
    fact_count: rows of the facts parts that no tombstone names. delta_parts: so many of the parts, the last ones, are
    fresh: searched beside the main index, which covers the parts before them. operation, author: what made this
    generation, and who ("" in format version 1).
    """

    format_version: int = FORMAT_VERSION
    generation: int
    parent: int | None
    parent_commit: str | None
    commit_id: str
    created_at: str
    dim: int
    dtype: str | None
    encoder: str | None
    max_norm: float
    fact_count: int
    tombstones: tuple[Part, ...]
    features: str | None
    grouping: str | None
    facts: tuple[Part, ...]
    vectors: tuple[Part, ...]
    note: str
    delta_parts: int = 0
    operation: str = ""
    author: str = ""


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as readable JSON that carries a checksum of its own content.

    Raises InputError for a manifest that from_bytes would refuse: what nobody can read is not to be committed.
    """
    content: dict[str, Any] = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    for name in ("tombstones", "facts", "vectors"):
        content[name] = [{field.name: getattr(part, field.name) for field in fields(part)} for part in content[name]]
    content["format_version"] = FORMAT_VERSION
    content["checksum"] = _content_checksum(content)
    try:
        _parse(content)
    except _Refused as refused:
        raise InputError(f"cannot commit generation {manifest.generation}: {refused}") from None
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


@lru_cache(maxsize=2)  # of an upsert's steps, several read the generation that it changes
def from_bytes(data: bytes, where: str, generation: int) -> Manifest:
    """Check everything about a manifest's text and return it; CorruptFile says what is wrong with the file `where`."""
    if len(data) > _MOST_MANIFEST_BYTES:
        raise CorruptFile(f"{where}: expected at most {_MOST_MANIFEST_BYTES:,} bytes, found {len(data):,}; {_RESTORE}")
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{where}: expected a manifest in JSON, found {_show(str(error))}; {_RESTORE}") from None
    if not isinstance(content, dict):
        raise CorruptFile(f"{where}: expected a JSON object, found {_kind(content)}; {_RESTORE}")
    version = content.get("format_version")
    if version not in _READ_VERSIONS or isinstance(version, bool):
        advice = "upgrade hmn to read it" if isinstance(version, int) and version > FORMAT_VERSION else _RESTORE
        known = " or ".join(map(str, _READ_VERSIONS))
        raise CorruptFile(f"{where}: expected format version {known}, found {version!r:.40}; {advice}")
    _check_checksum(content, where)
    try:
        manifest = _parse(content)
    except _Refused as refused:
        raise CorruptFile(f"{where}: {refused}; {_RESTORE}") from None
    if manifest.generation != generation:
        raise CorruptFile(f"{where}: expected generation {generation}, found {manifest.generation}; {_RESTORE}")
    return manifest


class _Refused(Exception):
    """expected ..., found ..."""


def _content_checksum(content: Mapping[str, Any]) -> str:
    payload = {key: value for key, value in content.items() if key != "checksum"}
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(canonical.encode())}"


def _check_checksum(content: Mapping[str, Any], where: str) -> None:
    expected = content.get("checksum")
    found = _content_checksum(content)
    if expected != found:
        raise CorruptFile(
            f"{where}: changed after it was written: expected checksum {expected!s:.60}, found {found}; {_RESTORE}"
        )


def _parse(content: Mapping[str, Any]) -> Manifest:
    known = {field.name for field in fields(Manifest)}
    is_first = content["format_version"] == 1
    _check_keys(content, (known - _NEW_IN_2 if is_first else known) | {"checksum"}, "the manifest")
    dim = _integer(content, "dim", 0, _MOST_DIMENSIONS)
    manifest = Manifest(
        format_version=content["format_version"],
        generation=_integer(content, "generation", 1, LAST_GENERATION),
        parent=None if content["parent"] is None else _integer(content, "parent", 1, LAST_GENERATION),
        parent_commit=_optional_text(content, "parent_commit"),
        commit_id=_text(content, "commit_id"),
        created_at=_text(content, "created_at"),
        dim=dim,
        dtype=_choice(content, "dtype", tuple(DTYPES)) if dim else None,
        encoder=_optional_text(content, "encoder"),
        max_norm=_norm(content),
        fact_count=_integer(content, "fact_count", 0, _MOST_ROWS),
        tombstones=_parts(content, "tombstones"),
        features=_optional_text(content, "features"),
        grouping=None if content["grouping"] is None else _choice(content, "grouping", GROUPINGS),
        facts=_parts(content, "facts"),
        vectors=_parts(content, "vectors"),
        note=_text(content, "note"),
        delta_parts=0 if is_first else _integer(content, "delta_parts", 0, len(content["facts"])),
        operation="" if is_first else _text(content, "operation"),
        author="" if is_first else _text(content, "author"),
    )
    if not dim and (content["dtype"], content["encoder"]) != (None, None):
        raise _Refused(f"expected no dtype and encoder while dim is 0, found {_show(content['dtype'])}")
    _check_whole(manifest)
    return manifest


def _check_whole(manifest: Manifest) -> None:
    """What must hold between fields."""
    if manifest.parent is not None and manifest.parent >= manifest.generation:
        raise _Refused(f"expected a parent below generation {manifest.generation}, found {manifest.parent}")
    if (manifest.parent is None) != (manifest.parent_commit is None):
        raise _Refused(f"expected a commit id exactly if there is a parent, found {manifest.parent_commit!r:.60}")
    if manifest.tombstones and manifest.format_version == 1:
        raise _Refused("expected no tombstones in format version 1, found some")
    rows = sum(part.rows for part in manifest.facts) - sum(part.rows for part in manifest.tombstones)
    if rows != manifest.fact_count:
        raise _Refused(
            f"expected the facts parts without the tombstones to hold {manifest.fact_count:,} rows, found {rows:,}"
        )
    wanted = [part.rows for part in manifest.facts] if manifest.dim else []
    found = [part.rows for part in manifest.vectors]
    if wanted != found:
        raise _Refused(
            f"expected vectors parts aligned with the facts parts ({len(wanted)} of {sum(wanted):,} rows), "
            f"found {len(found)} of {sum(found):,} rows"
        )


def _check_keys(content: Mapping[str, Any], known: set[str], what: str) -> None:
    missing, unknown = sorted(known - content.keys()), sorted(content.keys() - known)
    if missing or unknown:
        difference = f"no {missing[0]!r}" if missing else f"an unknown {unknown[0]!r:.60}"
        raise _Refused(f"expected {what} to hold {', '.join(sorted(known))}; found {difference}")


def _integer(content: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = content[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _Refused(f"expected {name} to be a whole number from {least} to {most}, found {_show(value)}")
    return value


def _norm(content: Mapping[str, Any]) -> float:
    value = content["max_norm"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise _Refused(f"expected max_norm to be a finite number of at least 0, found {_show(value)}")
    return float(value)


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content[name]
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise _Refused(f"expected {name} to be a text of at most {_LONGEST_TEXT:,} characters, found {_show(value)}")
    return value


def _optional_text(content: Mapping[str, Any], name: str) -> str | None:
    return None if content[name] is None else _text(content, name)


def _choice(content: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = _text(content, name)
    if value not in choices:
        raise _Refused(f"expected {name} to be one of {', '.join(choices)}, found {_show(value)}")
    return value


def _parts(content: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    if not isinstance(content[name], list):
        raise _Refused(f"expected {name} to be a list of parts, found {_show(content[name])}")
    parts = tuple(_part(entry, name) for entry in content[name])
    if len({part.path for part in parts}) != len(parts):
        raise _Refused(f"expected every part of {name} once, found one twice")
    return parts


def _part(entry: object, folder: str) -> Part:
    if not isinstance(entry, dict):
        raise _Refused(f"expected a part in {folder} to be an object, found {_show(entry)}")
    _check_keys(entry, {"path", "rows", "bytes", "checksum"}, f"a part in {folder}")
    path, checksum = _text(entry, "path"), _text(entry, "checksum")
    if not _PART_PATH.fullmatch(path) or not path.startswith(folder + "/"):
        raise _Refused(f"expected a part path {folder}/<name>.arrow, found {_show(path)}")
    if not _CHECKSUM.fullmatch(checksum):
        raise _Refused(f"expected the checksum of {path} as xxh3-128:<32 hex digits>, found {_show(checksum)}")
    rows, size = _integer(entry, "rows", 1, _MOST_ROWS), _integer(entry, "bytes", 1, _MOST_BYTES)
    return Part(path=path, rows=rows, bytes=size, checksum=checksum)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
