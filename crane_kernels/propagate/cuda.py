"""``propagate`` by the CUDA kernels: the operators of :mod:`crane_kernels.propagate.cpp`, on a CUDA device."""

from __future__ import annotations

from crane_kernels.propagate.cpp import propagate
from crane_kernels.spmm.cuda import refuses

__all__ = ["propagate", "refuses"]
