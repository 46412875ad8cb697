"""The meaning of ``spmm`` in plain PyTorch. Holds one row of d numbers for each edge while it runs."""

from __future__ import annotations

from torch import Tensor

from crane_kernels.graph import Graph


def spmm(graph: Graph, x: Tensor) -> Tensor:
    """y[i] = sum over edges (i, j) of A[i, j] x[j]: (n_cols, d) -> (n_rows, d)."""
    value = graph.value.to(x.dtype)
    return x.new_zeros(graph.n_rows, x.shape[1]).index_add(0, graph.row(), value[:, None] * x[graph.col])
