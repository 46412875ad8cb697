"""``spmm`` by the compiled CPU kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crane_kernels import extension
from crane_kernels.graph import Graph

DTYPES = (torch.float32, torch.float64)


def refuses(graph: Graph, x: Tensor, *_: Any) -> str | None:
    """Why the compiled kernels cannot multiply ``graph`` by ``x``; ``None`` when they can."""
    if x.device.type != "cpu":
        return f"x is on device {x.device}, not on the CPU"
    if x.dtype not in DTYPES:
        return f"x has dtype {x.dtype}, not float32 or float64"
    return refuses_derivatives(graph)


def refuses_derivatives(graph: Graph) -> str | None:
    """Which derivatives the compiled kernels of any device lack for this call; ``None`` when none."""
    if graph.value.requires_grad:
        return "the graph's values require gradients"
    if forward_ad._current_level >= 0:  # a custom operator would take every tangent for zero
        return "forward-mode differentiation is under way"
    return None


def arrays(graph: Graph, x: Tensor) -> tuple[Tensor | None, ...]:
    """Rowptr, col, value of A in the dtype of ``x``, then of its transpose, or None where no backward comes."""
    graph = graph.to(x.dtype)
    forward = graph.rowptr, graph.col, graph.value
    if not (torch.is_grad_enabled() and x.requires_grad):
        return *forward, None, None, None
    transpose = graph.transpose()
    return *forward, transpose.rowptr, transpose.col, transpose.value


def spmm(graph: Graph, x: Tensor) -> Tensor:
    """Y = A x on the CPU: (n_cols, d) -> (n_rows, d)."""
    result: Tensor = torch.ops.crane_kernels.spmm(*arrays(graph, x), x)
    return result


def swap(ctx: Any) -> tuple[Tensor, ...]:
    """The saved arrays for backward: the transpose's first, then A's own."""
    rowptr, col, value, *transpose = ctx.saved_tensors
    if not transpose:
        raise RuntimeError("spmm: the transpose was not given, expected it where x requires gradients")
    return *transpose, rowptr, col, value


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the graph's arrays for backward, and no activation."""
    ctx.save_for_backward(*(array for array in inputs[:6] if array is not None))
    ctx.rest = inputs[7:]


def _fake(
    rowptr: Tensor, _col: Tensor, _value: Tensor, _rowptr_t: Any, _col_t: Any, _value_t: Any, x: Tensor
) -> Tensor:
    return x.new_empty(rowptr.shape[0] - 1, x.shape[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *(None,) * 6, torch.ops.crane_kernels.spmm(*swap(ctx), grad)


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::spmm", _fake)
    torch.library.register_autograd("crane_kernels::spmm", _backward, setup_context=save)
