"""TOML tables to and from frozen dataclasses: an unknown key names the nearest known one."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from memory_store.errors import ConfigError

__all__ = ["at_least", "between", "build", "dump_toml", "one_of"]

Section = TypeVar("Section")


def build(section: type[Section], table: Mapping[str, Any], where: str = "") -> Section:
    """Make the dataclass from a parsed TOML table; tables within it become its nested dataclasses.

    where: the dotted path of the table, for messages. Raises ConfigError for an unknown key, a missing key without
    default, a value of another type, and whatever the dataclass itself refuses.
    """
    hints = get_type_hints(section)
    known = {field.name: field for field in fields(cast(Any, section)) if field.init}
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {_at(where, close[0])!r}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown setting {_at(where, key)!r}; {hint}")
    values = {}
    for name, field in known.items():
        if name in table:
            values[name] = _value(hints[name], table[name], _at(where, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"expected the setting {_at(where, name)!r}, found none; add it to the file")
    return section(**values)


def dump_toml(config: object) -> str:
    """The dataclass as TOML text that `build` reads back as an equal one; settings that are None are left out."""
    lines: list[str] = []
    _dump(config, "", lines)
    return "\n".join(lines).strip() + "\n"


def at_least(name: str, value: float, least: float) -> None:
    """Refuse a setting below its least value."""
    if not value >= least:
        raise ConfigError(f"expected {name} >= {least:g}, found {value:g}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a setting outside [low, high)."""
    if not low <= value < high:
        raise ConfigError(f"expected {low:g} <= {name} < {high:g}, found {value:g}")


def one_of(name: str, value: str, known: typing.Iterable[str]) -> None:
    """Refuse a word that is not one of the known ones, and suggest the nearest."""
    words = sorted(known)
    if value not in words:
        close = get_close_matches(value, words, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(words)}"
        raise ConfigError(f"{name} {value!r} is unknown; {hint}")


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a table [{where}], found {value!r}")
        return build(hint, value, where)
    if get_origin(hint) in (types.UnionType, typing.Union):
        inner = [one for one in get_args(hint) if one is not type(None)]
        return _value(inner[0], value, where)
    if get_origin(hint) is Literal:
        one_of(where, str(value), get_args(hint))
        return value
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"expected a list of texts for {where!r}, found {value!r}")
        return tuple(items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"expected {names.get(hint, hint)} for {where!r}, found {value!r}")
    return value


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _dump(config: object, where: str, lines: list[str]) -> None:
    nested = []
    for field in fields(cast(Any, config)):
        value = getattr(config, field.name)
        if is_dataclass(value):
            nested.append((_at(where, field.name), value))
        elif value is not None:
            lines.append(f"{field.name} = {_toml(value)}")
    for name, value in nested:
        lines.extend(["", f"[{name}]"])
        _dump(value, name, lines)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        escaped = "".join(_ESCAPES.get(char, char if char.isprintable() else f"\\U{ord(char):08x}") for char in value)
        return f'"{escaped}"'
    return repr(value)


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
