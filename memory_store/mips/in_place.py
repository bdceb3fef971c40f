"""Products of queries with rows that are read where they lie: a copy of the rows would take longer than they do."""

import faiss
import numpy as np
from numpy.typing import NDArray

# N rows, D dimension, b queries, C rows for each

__all__ = ["products_in_place"]


def products_in_place(
    rows_ND: NDArray[np.float32],
    row_bC: NDArray[np.int64],
    queries_bD: NDArray[np.float32],
    product_bC: NDArray[np.float32],
) -> None:
    """Write each query's products, in float32, with rows of its own; -inf for a row of -1. All are C-contiguous.

    As many threads work on it as faiss.omp_set_num_threads has set for the calling one.
    """
    faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(product_bC),
        faiss.swig_ptr(queries_bD),
        faiss.swig_ptr(rows_ND),
        faiss.swig_ptr(row_bC),
        rows_ND.shape[1],
        *row_bC.shape,
    )
