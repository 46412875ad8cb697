"""``spmm`` by the CUDA kernels: the operators of :mod:`crane_kernels.spmm.cpp`, on a CUDA device."""

from __future__ import annotations

from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.spmm.cpp import refuses_derivatives, spmm
from crane_kernels.spmm.reference import Reduce

__all__ = ["refuses", "refuses_operands", "spmm"]


def refuses(graph: Graph, x: Tensor, rows: Tensor | None = None, reduce: Reduce = "sum") -> str | None:
    """Why the CUDA kernels cannot multiply ``graph`` by ``x``; ``None`` when they can."""
    if reduce == "max":
        return "there is no maximum on CUDA"
    return refuses_operands(graph, x, rows)


def refuses_operands(graph: Graph, x: Tensor, rows: Tensor | None) -> str | None:
    """The same for a product that is no maximum."""
    if x.device.type != "cuda":
        return f"x is on device {x.device}, not on a CUDA device"
    if rows is not None:
        return "rows are not selected on CUDA"
    if graph.value.requires_grad:
        return "the graph's values require gradients"
    return refuses_derivatives(graph)
