"""A segment as lines of valid UTF-8: what cannot be read is set aside by line before anything parses it."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.files import MAX_LINE_BYTES, Segment
from pipeline.sources.rows import BadRow, shorten

# L lines of a segment

__all__ = ["Lines", "split_lines"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, eq=False)
class Lines:
    """data: UTF-8 without carriage returns, every line ended by a newline; lines in `bad` are empty in it.

    skipped: [L] empty lines and those in `bad`, which hold no row.
    """

    data: bytes
    bad: list[BadRow] = field(default_factory=list)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The position of each line's newline, int64 [L]."""
        return np.flatnonzero(np.frombuffer(self.data, dtype=np.uint8) == ord("\n"))

    @property
    def count(self) -> int:
        return len(self.ends)

    @property
    def skipped(self) -> NDArray[np.bool_]:
        return np.diff(self.ends, prepend=-1) == 1  # type: ignore[no-any-return]

    def raw(self, line: int) -> str:
        """The text of a line, counted from 1."""
        start = self.ends[line - 2] + 1 if line > 1 else 0
        return self.data[start : self.ends[line - 1]].decode(errors="replace")


def split_lines(segment: Segment) -> Lines:
    """Check that a segment is UTF-8; lines that are not, or that were cut short, are set aside."""
    data = segment.data
    if segment.index == 0:
        data = data.removeprefix(_BYTE_ORDER_MARK)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    bad = []
    if segment.cut_short:
        start = data.rfind(b"\n") + 1
        shown = shorten(data[start : start + 4096].decode(errors="replace"))
        bad.append(BadRow(line=data.count(b"\n") + 1, raw=shown, reason=f"longer than {MAX_LINE_BYTES:,} bytes"))
        data = data[:start] + b"\n"
    if data and not data.endswith(b"\n"):
        data += b"\n"
    try:
        data.decode()
    except UnicodeDecodeError:
        data = _without_undecodable(data, bad)
    return Lines(data=data, bad=bad)


def _without_undecodable(data: bytes, bad: list[BadRow]) -> bytes:
    lines = data.split(b"\n")
    for number, line in enumerate(lines):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}"
            bad.append(BadRow(line=number + 1, raw=shorten(line.decode(errors="backslashreplace")), reason=reason))
            lines[number] = b""
    return b"\n".join(lines)
