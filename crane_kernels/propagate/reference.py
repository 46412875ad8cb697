"""The meaning of ``propagate`` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.ordered import take
from crane_kernels.spmm import reference


def propagate(graph: Graph, x: Tensor, layers: int, rows: Tensor | None = None) -> Tensor:
    """Mean of x, A x, ..., A^layers x: (n, d) -> (n or len(rows), d)."""
    total = x
    for _ in range(layers):
        x = reference.spmm(graph, x)
        total = total + x
    mean = total / (layers + 1)
    return mean if rows is None else take(mean, rows)
