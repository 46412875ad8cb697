"""``spmm`` by the compiled CPU kernels, and the derivatives of its operators.

Each derivative of an operator is made of operators again: of A x, the products A^T g (``spmm_t``) and, for the edge
values, the dot products of rows of g and x (``sddmm``), whose own derivatives are products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.derivatives import differentiable
from crane_kernels.graph import Graph
from crane_kernels.ordered import sum_at
from crane_kernels.spmm.reference import Reduce


def refuses(_graph: Graph, x: Tensor, *_: Any) -> str | None:
    """Why the compiled kernels cannot multiply a graph by ``x``; ``None`` when they can."""
    if x.device.type != "cpu":
        return f"x is on device {x.device}, not on the CPU"
    return extension.refuses_derivatives()


def arrays(graph: Graph, x: Tensor) -> tuple[Tensor | None, ...]:
    """Rowptr, col and value of A in the dtype of ``x``, then what backward needs of its transpose, or None.

    That is rowptr, col and value of the transpose; of values that are learned, rowptr, col and the order of its edges.
    """
    graph = graph.to(x.dtype)
    forward = graph.rowptr, graph.col, graph.value
    if not (torch.is_grad_enabled() and (x.requires_grad or graph.value.requires_grad)):
        return *forward, None, None, None, None
    if graph.value.requires_grad:
        rowptr, col, order = graph.transpose_structure()
        return *forward, rowptr, col, None, order
    transpose = graph.transpose()
    return *forward, transpose.rowptr, transpose.col, transpose.value, None


def spmm(graph: Graph, x: Tensor, rows: Tensor | None = None, reduce: Reduce = "sum") -> Tensor:
    """Y = A x, all rows or some: (n_cols, d) -> (n_rows or len(rows), d)."""
    rows = None if rows is None else rows.contiguous()
    if reduce == "max":
        graph = graph.to(x.dtype)
        largest: Tensor = _spmm_max(graph.rowptr, graph.col, graph.value, x, rows)[0]
        return largest
    result: Tensor = _spmm(*arrays(graph, x), x, rows, reduce == "mean")
    return result


def save(ctx: Any, tensors: tuple[Tensor | None, ...], *rest: Any) -> None:
    """Keep tensors, of which some may be None, and what is no tensor for :func:`saved`."""
    ctx.present = tuple(tensor is not None for tensor in tensors)
    ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None))
    ctx.rest = rest


def saved(ctx: Any) -> tuple[Any, ...]:
    """What :func:`save` kept."""
    tensors = iter(ctx.saved_tensors)
    return *(next(tensors) if present else None for present in ctx.present), *ctx.rest


def _n_out(rowptr: Tensor, rows: Tensor | None) -> Any:
    return rowptr.shape[0] - 1 if rows is None else rows.shape[0]


def _edges_of(rowptr: Tensor, rows: Tensor | None) -> Tensor:
    """Number of edges of each row, at least 1."""
    counts = rowptr.diff()
    return (counts if rows is None else counts.index_select(0, rows)).clamp(min=1)


def _spmm_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *graph, x, rows, mean = inputs
    save(ctx, (*graph, x if ctx.needs_input_grad[2] else None, rows), mean, x.shape[0])


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, value, rowptr_t, col_t, value_t, order, x, rows, mean, n_cols = saved(ctx)
    if mean:  # half precision does not hold the number of a hub's edges
        wide = torch.promote_types(grad.dtype, torch.float32)
        grad = (grad.to(wide) / _edges_of(rowptr, rows)[:, None]).to(grad.dtype)
    grad_value = grad_x = None
    if ctx.needs_input_grad[2]:
        grad_value = _sddmm(rowptr, col, rowptr_t, col_t, order, grad, x, rows)
    if ctx.needs_input_grad[7]:
        grad_x = _spmm_t(rowptr, col, value, rowptr_t, col_t, value_t, order, grad, rows, n_cols)
    return None, None, grad_value, None, None, None, None, grad_x, None, None


def _spmm_t_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *graph, grad, rows, _ = inputs
    save(ctx, (*graph, grad if ctx.needs_input_grad[2] else None, rows))


def _spmm_t_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, value, rowptr_t, col_t, value_t, order, grad, rows = saved(ctx)
    grad_value = grad_grad = None
    if ctx.needs_input_grad[2]:
        grad_value = _sddmm(rowptr, col, rowptr_t, col_t, order, grad, upstream, rows)
    if ctx.needs_input_grad[7]:
        grad_grad = _spmm(rowptr, col, value, rowptr_t, col_t, value_t, order, upstream, rows, False)
    return None, None, grad_value, None, None, None, None, grad_grad, None, None


def _sddmm_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, inputs)


def _sddmm_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, rowptr_t, col_t, order, grad, x, rows = saved(ctx)
    graph = rowptr, col, upstream.contiguous(), rowptr_t, col_t, None, order
    grad_grad = grad_x = None
    if ctx.needs_input_grad[5]:
        grad_grad = _spmm(*graph, x, rows, False)
    if ctx.needs_input_grad[6]:
        grad_x = _spmm_t(*graph, grad, rows, x.shape[0])
    return None, None, None, None, None, grad_grad, grad_x, None


def _max_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, col, value, x, _ = inputs
    ctx.mark_non_differentiable(output[1])
    save(ctx, (col, value, x, output[1]))


def _max_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    col, value, x, argmax = saved(ctx)
    if col.shape[0] == 0:
        return None, None, torch.zeros_like(value), torch.zeros_like(x), None
    edge = argmax.clamp(min=0)
    grad = grad.where(argmax >= 0, grad.new_zeros(()))
    place = col[edge].long()
    grad_value = grad_x = None
    if ctx.needs_input_grad[2]:
        grad_value = sum_at(edge.flatten(), (grad * x.gather(0, place)).flatten(), value.shape[0])
    if ctx.needs_input_grad[3]:
        column = torch.arange(x.shape[1], device=x.device)
        target = (place * x.shape[1] + column).flatten()
        grad_x = sum_at(target, (grad * value[edge]).flatten(), x.numel()).view(x.shape)
    return None, None, grad_value, grad_x, None


def _fake_spmm(rowptr: Tensor, *rest: Any) -> Tensor:
    *_, x, rows, _ = rest
    return x.new_empty(_n_out(rowptr, rows), x.shape[1])  # type: ignore[no-any-return]


def _fake_spmm_t(*arguments: Any) -> Tensor:
    *_, grad, _, n_cols = arguments
    return grad.new_empty(n_cols, grad.shape[1])  # type: ignore[no-any-return]


def _fake_max(rowptr: Tensor, _col: Tensor, _value: Tensor, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (_n_out(rowptr, rows), x.shape[1])
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _fake_sddmm(_rowptr: Tensor, col: Tensor, *rest: Any) -> Tensor:
    return rest[-2].new_empty(col.shape[0])  # type: ignore[no-any-return]


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::spmm", _fake_spmm)
    torch.library.register_fake("crane_kernels::spmm_t", _fake_spmm_t)
    torch.library.register_fake("crane_kernels::spmm_max", _fake_max)
    torch.library.register_fake("crane_kernels::sddmm", _fake_sddmm)
    _spmm = differentiable("spmm", _spmm_backward, _spmm_save)
    _spmm_t = differentiable("spmm_t", _spmm_t_backward, _spmm_t_save)
    _spmm_max = differentiable("spmm_max", _max_backward, _max_save)
    _sddmm = differentiable("sddmm", _sddmm_backward, _sddmm_save)
