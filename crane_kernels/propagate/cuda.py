"""``propagate`` by the CUDA kernels: the operator of :mod:`crane_kernels.propagate.cpp`, on a CUDA device."""

from __future__ import annotations

from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.propagate.cpp import propagate
from crane_kernels.spmm.cuda import refuses_operands

__all__ = ["propagate", "refuses"]


def refuses(graph: Graph, x: Tensor, _layers: int, rows: Tensor | None = None) -> str | None:
    """Why the CUDA kernels cannot propagate ``x``; ``None`` when they can."""
    return refuses_operands(graph, x, rows)
