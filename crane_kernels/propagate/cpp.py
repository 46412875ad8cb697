"""``propagate`` by the compiled CPU kernel: one call for all layers, two buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.graph import Graph
from crane_kernels.spmm.cpp import arrays, refuses, save, swap

__all__ = ["propagate", "refuses"]


def propagate(graph: Graph, x: Tensor, layers: int) -> Tensor:
    """Mean of x, A x, ..., A^layers x on the CPU: (n, d) -> (n, d)."""
    result: Tensor = torch.ops.crane_kernels.propagate(*arrays(graph, x), x, layers)
    return result


def _fake(
    _rowptr: Tensor, _col: Tensor, _value: Tensor, _rowptr_t: Any, _col_t: Any, _value_t: Any, x: Tensor, _layers: int
) -> Tensor:
    return x.new_empty(x.shape)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *(None,) * 6, torch.ops.crane_kernels.propagate(*swap(ctx), grad, *ctx.rest), None


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::propagate", _fake)
    torch.library.register_autograd("crane_kernels::propagate", _backward, setup_context=save)
