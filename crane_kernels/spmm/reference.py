"""The meaning of ``spmm`` in plain PyTorch. Holds one row of d numbers for each edge while it runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.ordered import sum_at, take

Reduce = Literal["sum", "mean", "max"]


def spmm(graph: Graph, x: Tensor, rows: Tensor | None = None, reduce: Reduce = "sum") -> Tensor:
    """y[i] = sum, mean or maximum over edges (i, j) of A[i, j] x[j]: (n_cols, d) -> (n_rows or len(rows), d)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    products = graph.value.to(x.dtype).to(wide)[:, None] * take(x.to(wide), graph.col)
    row = graph.row()
    y = _maxima(products, row, graph) if reduce == "max" else sum_at(row, products, graph.n_rows)
    if reduce == "mean":
        y = y / graph.rowptr.diff().clamp(min=1)[:, None]
    return (y if rows is None else take(y, rows)).to(x.dtype)


def _maxima(products: Tensor, row: Tensor, graph: Graph) -> Tensor:
    """The first of each row's largest products, a NaN being larger than all; 0 for rows without edges."""
    n, d = products.shape
    with torch.no_grad():
        place = row[:, None].expand(n, d)
        largest = products.new_zeros(graph.n_rows, d).scatter_reduce(0, place, products, "amax", include_self=False)
        wins = (products == largest[row]) | products.isnan()
        edge = torch.where(wins, torch.arange(n, device=row.device)[:, None], n)
        first = edge.new_full((graph.n_rows, d), n).scatter_reduce(0, place, edge, "amin")
    none = products.new_zeros(1, d)
    return torch.cat([products, none]).gather(0, first)
