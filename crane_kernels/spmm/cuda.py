"""``spmm`` by the CUDA kernels: the operators of :mod:`crane_kernels.spmm.cpp`, on a CUDA device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crane_kernels import extension
from crane_kernels.graph import Graph
from crane_kernels.spmm.cpp import spmm

__all__ = ["refuses", "spmm"]


def refuses(_graph: Graph, x: Tensor, *_: Any) -> str | None:
    """Why the CUDA kernels cannot multiply a graph by ``x``; ``None`` when they can."""
    if x.device.type != "cuda":
        return f"x is on device {x.device}, not on a CUDA device"
    return extension.refuses_derivatives()
