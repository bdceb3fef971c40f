"""Receipts and plans of work under way: only hints for whoever goes on with it; what cannot be read is done anew."""

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from memory_store.manifest_format import Part
from memory_store.storage import Storage

__all__ = ["part_of", "read_receipt"]

_log = logging.getLogger(__name__)
_Receipt = TypeVar("_Receipt")


def read_receipt(storage: Storage, path: str, parse: Callable[[Any], _Receipt]) -> _Receipt | None:
    """What `parse` makes of the JSON in a staged file; None where there is no such file, or none that can be read.

    parse: raises ValueError, TypeError or LookupError for what is no such receipt. A file that cannot be read is
    deleted, and the log says so: nothing is lost but what it saved.
    """
    try:
        return parse(json.loads(storage.read_bytes(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        _log.warning(
            "dropped %s, which cannot be read (%s: %s): what it was for is done anew",
            storage.where(path),
            type(error).__name__,
            error,
        )
    storage.delete(path)
    return None


def part_of(fields: Any, path: str | None = None) -> Part:
    """A part as a receipt names it. Raises ValueError or TypeError where it is none, or not the one at `path`."""
    part = Part(**fields)
    kinds = [type(value) for value in (part.path, part.rows, part.bytes, part.checksum)]
    if kinds != [str, int, int, str]:
        raise ValueError(f"expected a part, found {fields!r:.200}")
    if path is not None and part.path != path:
        raise ValueError(f"expected the part {path}, found {part.path!r:.200}")
    return part
