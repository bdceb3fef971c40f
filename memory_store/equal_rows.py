"""Which rows of two tables say the same, column by column and without a loop over rows."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# N rows, V values of all lists together

__all__ = ["equal_rows"]


def equal_rows(one: pa.Table, other: pa.Table) -> NDArray[np.bool_]:
    """Whether row n of one table equals row n of the other in every column: bool [N]. A null equals a null.

    Both tables have the same schema and number of rows; lists and structs may be nested.
    """
    assert one.schema.equals(other.schema), "the tables have the same columns"
    assert len(one) == len(other), "the tables have the same number of rows"
    same_N = np.ones(len(one), dtype=np.bool_)
    for name in one.column_names:
        same_N &= _equal(_array(one[name]), _array(other[name]))
    return same_N


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _equal(one: pa.Array, other: pa.Array) -> NDArray[np.bool_]:
    if one.equals(other):  # most often all are
        return np.ones(len(one), dtype=np.bool_)
    valid_N: NDArray[np.bool_] = np.asarray(one.is_valid())
    same_N: NDArray[np.bool_] = valid_N == np.asarray(other.is_valid())
    both_N = valid_N & same_N
    if pa.types.is_struct(one.type):
        for number in range(one.type.num_fields):
            same_N &= ~both_N | _equal(pc.struct_field(one, number), pc.struct_field(other, number))
        return same_N
    if pa.types.is_list(one.type):
        length_N, other_length_N = (np.asarray(pc.fill_null(pc.list_value_length(each), 0)) for each in (one, other))
        same_N &= length_N == other_length_N
        row_N = np.flatnonzero(both_N & same_N)
        values_V, other_V = (each.take(pa.array(row_N)).flatten() for each in (one, other))
        bounds = np.cumsum([0, *length_N[row_N]])
        different = np.cumsum([0, *~_equal(values_V, other_V)])
        same_N[row_N] = different[bounds[1:]] == different[bounds[:-1]]
        return same_N
    same_N &= np.asarray(pc.fill_null(pc.equal(one, other), True))
    return same_N
