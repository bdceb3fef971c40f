"""Reading the options of an index name: whole numbers within bounds, words from a list; refusals name the option."""

from collections.abc import Sequence

from memory_store.errors import UnknownIndex
from memory_store.mips.base import IndexSpec

__all__ = ["one_of", "whole_number"]


def whole_number(spec: IndexSpec, option: str, default: int, *, least: int = 1, most: int = 2**31 - 1) -> int:
    """The option as a number in [least, most], or the default where it is not given. Raises UnknownIndex."""
    text = spec.options.get(option)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise UnknownIndex(
            f"expected {spec.name}?{option}= to be a whole number from {least} to {most}, found {text!r}"
        )
    return int(text)


def one_of(spec: IndexSpec, option: str, allowed: Sequence[str]) -> str:
    """The option as one of the allowed words, the first of which is the default. Raises UnknownIndex."""
    text = spec.options.get(option, allowed[0])
    if text not in allowed:
        raise UnknownIndex(f"expected {spec.name}?{option}= to be one of {', '.join(allowed)}, found {text!r}")
    return text
