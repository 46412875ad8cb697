"""``spmm`` by the CUDA kernels: the operators of :mod:`crane_kernels.spmm.cpp`, on a CUDA device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.spmm.cpp import refuses_derivatives, spmm

__all__ = ["refuses", "spmm"]


def refuses(graph: Graph, x: Tensor, *_: Any) -> str | None:
    """Why the CUDA kernels cannot multiply ``graph`` by ``x``; ``None`` when they can."""
    if x.device.type != "cuda":
        return f"x is on device {x.device}, not on a CUDA device"
    return refuses_derivatives(graph)
