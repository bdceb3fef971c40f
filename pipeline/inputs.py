"""The inputs of an ingest: files and built-in sources found by name, each with what it holds and how it is cut."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memory_store.errors import EmptyInput, InputError
from pipeline.sources.builtin import Builtin, is_builtin, parse_builtin
from pipeline.sources.files import SourceFile, find_files
from pipeline.sources.layout import NTRIPLES, Layout, detect_layout
from pipeline.sources.pieces import Piece, file_pieces

__all__ = ["BuiltinInput", "FileInput", "Input", "find_inputs"]

_EXPANSION = {None: 1.0, "gzip": 4.0, "zstd": 8.0}  # decompressed bytes per byte, for text of this kind


@dataclass(frozen=True, kw_only=True)
class FileInput:
    """One file and how it is read."""

    file: SourceFile
    layout: Layout

    @property
    def shown(self) -> str:
        return self.file.shown

    @property
    def is_names(self) -> bool:
        return self.layout.kind == "names"

    @property
    def gives_names(self) -> bool:
        """Whether it may say what the objects of another input are called."""
        return self.is_names or self.layout.format == NTRIPLES

    @property
    def bytes(self) -> int:
        return self.file.bytes

    @property
    def triples(self) -> float:
        """A guess, from the size and the first lines."""
        return 0.0 if self.is_names else self.bytes * _EXPANSION[self.file.codec] / self.layout.bytes_per_row

    @property
    def identity(self) -> dict[str, Any]:
        """Changes when the rows may have changed."""
        return asdict(self)

    def pieces(self, source: int, segment_bytes: int) -> Sequence[Piece]:
        return file_pieces(source, self.file, self.layout, segment_bytes)


@dataclass(frozen=True, kw_only=True)
class BuiltinInput:
    """A built-in source."""

    builtin: Builtin

    is_names = False
    gives_names = False  # its objects have their names already
    bytes = 0

    @property
    def shown(self) -> str:
        return self.builtin.identity

    @property
    def triples(self) -> float:
        return self.builtin.triples

    @property
    def identity(self) -> dict[str, Any]:
        return {"builtin": self.builtin.identity, "version": self.builtin.version}

    def pieces(self, source: int, segment_bytes: int) -> Sequence[Piece]:
        return self.builtin.pieces(source)


Input = FileInput | BuiltinInput


def find_inputs(sources: Sequence[str], names: Sequence[str]) -> tuple[list[Input], list[str]]:
    """(every input once, in order; the files of directories and globs that were left out: questions and empty files).

    Names come first whatever their place, so that the first line of a names file names the entity. InputError or
    EmptyInput for what cannot be facts or names.
    """
    inputs: dict[str, Input] = {}
    skipped: list[str] = []
    for source in names:
        inputs |= _of_files(source, True, skipped)
    for source in sources:
        if is_builtin(source):
            builtin = BuiltinInput(builtin=parse_builtin(source))
            inputs[builtin.shown] = builtin
        else:
            inputs |= {url: item for url, item in _of_files(source, False, skipped).items() if url not in inputs}
    if all(item.is_names for item in inputs.values()):
        raise EmptyInput(f"there are no facts in {', '.join(sources) or 'no sources'}; expected triples")
    return sorted(inputs.values(), key=lambda item: not item.is_names), skipped


def _of_files(source: str, names: bool, skipped: list[str]) -> dict[str, Input]:
    files = find_files(source)
    inputs: dict[str, Input] = {}
    for file in files:
        try:
            layout = detect_layout(file, names=names)
        except EmptyInput:
            if len(files) == 1:
                raise
            skipped.append(file.shown)
            continue
        if layout.kind != "questions":
            inputs[file.url] = FileInput(file=file, layout=layout)
        elif len(files) == 1:
            raise InputError(f"{file.shown} holds questions, not facts; `hmn train` and `hmn evaluate` read them")
        else:
            skipped.append(file.shown)
    return inputs
