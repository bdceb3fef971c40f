"""Triples and names in Parquet, batch by batch; an object column may hold lists."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memory_store.errors import InputError
from pipeline.sources.files import SourceFile, open_stream
from pipeline.sources.layout import Layout
from pipeline.sources.rows import BadRow, Parsed, check_names, check_triples

__all__ = ["PARQUET_ROWS", "parse_parquet"]

PARQUET_ROWS = 1 << 17
"""Rows parsed at once."""


def parse_parquet(file: SourceFile, layout: Layout, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Parsed]]:
    """The wanted batches of a file, each with its number. A row's line is its row number, from 1 in each batch."""
    with open_stream(file) as stream:
        try:
            reader = pq.ParquetFile(stream)
            batches = reader.iter_batches(
                batch_size=PARQUET_ROWS, columns=[str(name) for name in layout.columns.values()]
            )
            for index, batch in enumerate(batches):
                if wanted(index):
                    yield index, _parse(batch, layout, file)
        except pa.ArrowException as error:
            raise InputError(f"{file.shown} is not a Parquet file, or damaged: {error}") from None


def _parse(batch: pa.RecordBatch, layout: Layout, file: SourceFile) -> Parsed:
    line_N = np.arange(1, batch.num_rows + 1)
    columns = {meaning: batch.column(str(name)) for meaning, name in layout.columns.items()}
    lists = [name for name, column in columns.items() if _is_list(column.type)]
    bad: list[BadRow] = []
    if lists:
        columns, line_N, bad = _unlist(columns, lists, batch.num_rows)
    texts = {meaning: _as_text(column, file, meaning) for meaning, column in columns.items()}

    def raw(line: int) -> str:
        return str({name: str(batch.column(str(name))[line - 1]) for name in layout.columns.values()})

    check = check_names if layout.kind == "names" else check_triples
    table, rejected = check(texts, line_N, raw)
    bad = sorted(bad + rejected, key=lambda row: row.line)
    if layout.kind == "names":
        return Parsed(names=table, bad=bad, lines=batch.num_rows)
    return Parsed(triples=table, bad=bad, lines=batch.num_rows)


def _unlist(
    columns: dict[str, pa.Array], lists: list[str], rows: int
) -> tuple[dict[str, pa.Array], np.ndarray, list[BadRow]]:
    """One row per element; rows whose lists are empty or of different lengths are rejected."""
    lengths = [pc.fill_null(pc.list_value_length(columns[name]), 0).to_numpy() for name in lists]
    good_N = (lengths[0] > 0) & np.all([length == lengths[0] for length in lengths], axis=0)
    bad = [
        BadRow(line=int(row) + 1, raw="", reason="expected lists of one length, not empty, found "
               + ", ".join(str(length[row]) for length in lengths))
        for row in np.flatnonzero(~good_N)
    ]  # fmt: skip
    kept = {name: column.filter(pa.array(good_N)) for name, column in columns.items()}
    row_T = pc.list_parent_indices(kept[lists[0]])
    spread = {name: pc.list_flatten(column) if name in lists else column.take(row_T) for name, column in kept.items()}
    return spread, (np.flatnonzero(good_N) + 1)[row_T.to_numpy()], bad


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _as_text(column: pa.Array, file: SourceFile, meaning: str) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return pc.fill_null(column.cast(pa.string()), "")
    except pa.ArrowException:
        raise InputError(
            f"{file.shown}: expected text or numbers as {meaning}, found {column.type}; convert the column"
        ) from None
