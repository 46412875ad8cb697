"""``modality_attention`` by the compiled CPU kernels: rows in blocks that stay in cache, only the inputs saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crane_kernels import extension
from crane_kernels.modality_attention import reference

DTYPES = (torch.float32, torch.float64)
MAX_TOKENS = 4


def refuses(tokens: Tensor, *rest: Any) -> str | None:
    """Why the compiled kernels cannot attend over ``tokens``; ``None`` when they can."""
    if tokens.device.type != "cpu":
        return f"tokens is on device {tokens.device}, not on the CPU"
    if tokens.dtype not in DTYPES:
        return f"tokens has dtype {tokens.dtype}, not float32 or float64"
    return refuses_in_general(tokens, *rest)


def refuses_in_general(tokens: Tensor, *rest: Any) -> str | None:
    """What the compiled kernels of any device lack for this call; ``None`` when nothing."""
    if rest[-1] != "modalities":
        return f"axis is {rest[-1]!r}, not 'modalities'"
    if tokens.shape[1] > MAX_TOKENS:
        return f"tokens has {tokens.shape[1]} tokens a row, more than {MAX_TOKENS}"
    if forward_ad._current_level >= 0:  # a custom operator would take every tangent for zero
        return "forward-mode differentiation is under way"
    return None


def modality_attention(*arguments: Any) -> Tensor:
    """Attention over the tokens of each row, then their mean, on the CPU: (N, M, d) -> (N, d)."""
    result: Tensor = torch.ops.crane_kernels.modality_attention(*arguments[:6])
    return result


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the inputs for backward, and no activation."""
    ctx.save_for_backward(*inputs[:5])
    ctx.num_heads = inputs[5]


def differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by the reference, so that they have gradients themselves."""
    arguments: tuple[Any, ...] = (*ctx.saved_tensors, ctx.num_heads)
    needed = [index for index in range(5) if ctx.needs_input_grad[index]]
    output = reference.modality_attention(*arguments)
    gradients = torch.autograd.grad(output, [arguments[index] for index in needed], grad, create_graph=True)
    by_index = dict(zip(needed, gradients, strict=True))
    return *(by_index.get(index) for index in range(5)), None


def _fake(tokens: Tensor, *_: Any) -> Tensor:
    return tokens.new_empty(tokens.shape[0], tokens.shape[2])


def fake_backward(_grad: Tensor, tokens: Tensor, *_: Any) -> tuple[Tensor, ...]:
    """Gradients of the right shapes."""
    d = tokens.shape[2]
    return tuple(tokens.new_empty(shape) for shape in (tokens.shape, (3 * d, d), (3 * d,), (d, d), (d,)))


def wanted(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients that somebody asked for."""
    pairs = zip(gradients, ctx.needs_input_grad[:5], strict=True)
    return tuple(gradient if needed else None for gradient, needed in pairs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return differentiable_backward(ctx, grad)
    gradients = torch.ops.crane_kernels.modality_attention_backward(grad, *ctx.saved_tensors, ctx.num_heads)
    return *wanted(ctx, gradients), None


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::modality_attention", _fake)
    torch.library.register_fake("crane_kernels::modality_attention_backward", fake_backward)
    torch.library.register_autograd("crane_kernels::modality_attention", _backward, setup_context=save)
