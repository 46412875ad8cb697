"""``info_nce`` by the compiled CPU kernels: logits exist in blocks that stay in cache, n * 384 of them at most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.derivatives import differentiable
from crane_kernels.info_nce import reference


def refuses(a: Tensor, *_: Any) -> str | None:
    """Why the compiled kernels cannot compare ``a``; ``None`` when they can."""
    return extension.refuses("a", a) or extension.refuses_derivatives()


def info_nce(a: Tensor, b: Tensor, temperature: float, ids: Tensor | None, symmetric: bool) -> Tensor:
    """Mean over rows i of -log softmax_j(cos(a_i, b_j) / temperature) at j = i: scalar."""
    ids = None if ids is None else ids.long().contiguous()
    loss: Tensor = _info_nce(a, b, temperature, ids)[0]
    if symmetric:
        loss = (loss + _info_nce(b, a, temperature, ids)[0]) / 2
    return loss


def _fake(a: Tensor, _b: Tensor, _temperature: float, _ids: Tensor | None) -> tuple[Tensor, Tensor]:
    return a.new_empty(()), a.new_empty(a.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, b, ctx.temperature, ids = inputs
    ctx.save_for_backward(a, b, output[1], ids)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    a, b, log_sum_exp, ids = ctx.saved_tensors
    grads = _info_nce_backward(grad, a, b, log_sum_exp, ctx.temperature, ids)
    return *grads, None, None


def _fake_backward(
    _grad: Tensor, a: Tensor, b: Tensor, _log_sum_exp: Tensor, _temperature: float, _ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, a, b, _, ctx.temperature, ids = inputs
    ctx.save_for_backward(grad, a, b, ids)
    ctx.set_materialize_grads(False)


def _backward_of_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives are rare: they are the reference's."""
    *tensors, ids = ctx.saved_tensors
    with torch.enable_grad():
        grad, a, b = (tensor.detach().requires_grad_() for tensor in tensors)
        loss = reference.info_nce(a, b, ctx.temperature, ids, False)
        once = torch.autograd.grad(loss, (a, b), grad, create_graph=True)
        arrived = [i for i, of_output in enumerate(grads) if of_output is not None]
        twice = torch.autograd.grad(
            [once[i] for i in arrived], (grad, a, b), [grads[i] for i in arrived], allow_unused=True
        )
    return *twice, None, None, None


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::info_nce", _fake)
    torch.library.register_fake("crane_kernels::info_nce_backward", _fake_backward)
    _info_nce = differentiable("info_nce", _backward, _save)
    _info_nce_backward = differentiable("info_nce_backward", _backward_of_backward, _save_backward)
