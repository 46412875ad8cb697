"""``propagate`` by the compiled CPU kernels: one call for all layers, and each only where it is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.derivatives import differentiable
from crane_kernels.graph import Graph
from crane_kernels.ordered import take
from crane_kernels.spmm import cpp
from crane_kernels.spmm.cpp import arrays, refuses, save, saved

__all__ = ["propagate", "refuses"]


def propagate(graph: Graph, x: Tensor, layers: int, rows: Tensor | None = None) -> Tensor:
    """Mean of x, A x, ..., A^layers x, all rows or some: (n, d) -> (n or len(rows), d)."""
    if graph.value.requires_grad:
        return _layer_by_layer(graph, x, layers, rows)
    rows = None if rows is None else rows.contiguous()
    result: Tensor = _propagate(*arrays(graph, x)[:6], x, layers, rows)
    return result


def _layer_by_layer(graph: Graph, x: Tensor, layers: int, rows: Tensor | None) -> Tensor:
    """The same by products of their own, each of which keeps its input for the gradient of the edge values."""
    y = x
    for _ in range(layers - 1):
        y = x + cpp.spmm(graph, y)
    own = x if rows is None else take(x, rows)
    return (own + cpp.spmm(graph, y, rows)) / (layers + 1) if layers else own


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *graph, _, layers, rows = inputs
    if ctx.needs_input_grad[2]:
        raise RuntimeError("value: found values that require gradients, expected constants (multiply layer by layer)")
    save(ctx, (*graph, rows), layers)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *graph, rows, layers = saved(ctx)
    return *(None,) * 6, _propagate_t(*graph, grad, layers, rows), None, None


def _backward_t(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *graph, rows, layers = saved(ctx)
    return *(None,) * 6, _propagate(*graph, grad, layers, rows), None, None


def _fake(rowptr: Tensor, *rest: Any) -> Tensor:
    *_, x, _, rows = rest
    return x.new_empty(rowptr.shape[0] - 1 if rows is None else rows.shape[0], x.shape[1])  # type: ignore[no-any-return]


def _fake_t(rowptr: Tensor, *rest: Any) -> Tensor:
    *_, grad, _, _ = rest
    return grad.new_empty(rowptr.shape[0] - 1, grad.shape[1])  # type: ignore[no-any-return]


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::propagate", _fake)
    torch.library.register_fake("crane_kernels::propagate_t", _fake_t)
    _propagate = differentiable("propagate", _backward, _save)
    _propagate_t = differentiable("propagate_t", _backward_t, _save)
