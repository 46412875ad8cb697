"""``recursive_cross_modal_attention`` by the compiled CPU kernels: a block of rows at a time, which stays in cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.derivatives import differentiable
from crane_kernels.recursive_cross_modal_attention import reference


def refuses(x: Tensor, *_: Any) -> str | None:
    """Why the compiled kernels cannot refine ``x``; ``None`` when they can."""
    return extension.refuses("x", x) or extension.refuses_derivatives()


def recursive_cross_modal_attention(
    x: Tensor,
    w_joint: Tensor,
    b_joint: Tensor,
    w_attend: Tensor,
    w_out: Tensor,
    recursions: int,
    scale: float,
    rows: Tensor | None = None,
    memory: str = "fast",
) -> Tensor:
    """The Gram form on the CPU: (N, M, d) -> (N, M, d), or (n, M, d) with ``rows``.

    Backward has the moments of every recursion, and starts from the features of each, or where ``memory`` is "low"
    from ``x``: recursion r is then computed r times more, block by block.
    """
    if recursions == 0:
        return x if rows is None else x.index_select(0, rows)
    tensors = x, w_joint, b_joint, w_attend, w_out
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    kept = recursions - 1 if differentiated and memory == "fast" else 0
    rows = None if rows is None else rows.long().contiguous()
    result: Tensor = _attention(*tensors, rows, recursions, scale, kept)[0]
    return result


def _fake(
    x: Tensor,
    _j: Tensor,
    _b: Tensor,
    _a: Tensor,
    _o: Tensor,
    rows: Tensor | None,
    recursions: int,
    _s: float,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, modalities, d = x.shape
    columns = modalities * d
    return (
        x.new_empty(n if rows is None else rows.shape[0], modalities, d),
        x.new_empty(kept, n, modalities, d),
        x.new_empty(recursions, columns + 1, columns),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.scale = inputs[7]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    wanted = ctx.needs_input_grad[0]
    grad_x, grad_joint, *others = _attention_backward(grad, *ctx.saved_tensors, ctx.scale, wanted)
    return grad_x if wanted else None, grad_joint[:-1], grad_joint[-1], *others, None, None, None, None


def _fake_backward(
    _grad: Tensor,
    x: Tensor,
    w_joint: Tensor,
    b_joint: Tensor,
    w_attend: Tensor,
    w_out: Tensor,
    _rows: Tensor | None,
    _between: Tensor,
    _moments: Tensor,
    _scale: float,
    wants_x: bool,
) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape if wants_x else (0, *x.shape[1:])),
        x.new_empty(w_joint.shape[0] + 1, w_joint.shape[1]),
        x.new_empty(w_attend.shape),
        x.new_empty(w_out.shape),
    )


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[8].shape[0], inputs[9]
    ctx.wants_x = inputs[10]
    ctx.set_materialize_grads(False)


def _backward_of_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives are rare: they are the reference's."""
    *tensors, rows = ctx.saved_tensors
    with torch.enable_grad():
        grad, *inputs = (tensor.detach().requires_grad_() for tensor in tensors)
        arguments: list[Any] = [*inputs, *ctx.rest, rows]
        result = reference.gram_form(*arguments)
        x, w_joint, b_joint, *others = torch.autograd.grad(result, inputs, grad, create_graph=True)
        outputs = x if ctx.wants_x else x[:0], torch.cat([w_joint, b_joint[None]]), *others
        arrived = [i for i, of_output in enumerate(grads) if of_output is not None]
        twice = torch.autograd.grad(
            [outputs[i] for i in arrived], (grad, *inputs), [grads[i] for i in arrived], allow_unused=True
        )
    return *twice, None, None, None, None, None


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::recursive_cross_modal_attention", _fake)
    torch.library.register_fake("crane_kernels::recursive_cross_modal_attention_backward", _fake_backward)
    _attention = differentiable("recursive_cross_modal_attention", _backward, _save)
    _attention_backward = differentiable(
        "recursive_cross_modal_attention_backward", _backward_of_backward, _save_backward
    )
