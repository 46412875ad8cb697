"""``modality_attention`` by the compiled CPU kernels: rows in blocks that stay in cache, only the inputs saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.derivatives import differentiable
from crane_kernels.modality_attention import items, reference

MAX_TOKENS = 4


def refuses(tokens: Tensor, *rest: Any) -> str | None:
    """Why the compiled kernels cannot attend over ``tokens``; ``None`` when they can."""
    reason = extension.refuses("tokens", tokens)
    if reason is not None:
        return reason
    if rest[-1] == "items" and tokens.dtype != torch.float32:
        return f"axis is 'items' and tokens has dtype {tokens.dtype}, not float32"
    if rest[-1] == "modalities" and tokens.shape[1] > MAX_TOKENS:
        return f"tokens has {tokens.shape[1]} tokens a row, more than {MAX_TOKENS}"
    return extension.refuses_derivatives()


def modality_attention(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
    axis: str,
) -> Tensor:
    """Attention over the tokens of each row or over the rows, then the mean, on the CPU: (N, M, d) -> (N, d)."""
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias
    if axis == "items":
        return reference.modality_attention(tokens, *weights, num_heads, axis, _attend_to_items)
    result: Tensor = _attention(tokens, *weights, num_heads)
    return result


def _attend_to_items(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    result: Tensor = _items_attention(query, key, value)[0]
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


def _save_items(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward_of_items(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    query, key, value, output, log_sum = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradients have gradients themselves
        inputs = [x for x, needed in zip((query, key, value), ctx.needs_input_grad, strict=True) if needed]
        again = items.in_blocks(query, key, value)
        found = iter(torch.autograd.grad(again, inputs, grad, create_graph=True))
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
    gradients = torch.ops.crane_kernels.items_attention_backward(grad, query, key, value, output, log_sum)
    return tuple(x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=True))


def _fake_items(query: Tensor, _key: Tensor, _value: Tensor) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:3])


def _fake_backward_of_items(_grad: Tensor, query: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::modality_attention", _fake)
    torch.library.register_fake("crane_kernels::modality_attention_backward", fake_backward)
    torch.library.register_fake("crane_kernels::items_attention", _fake_items)
    torch.library.register_fake("crane_kernels::items_attention_backward", _fake_backward_of_items)
    _attention = differentiable("modality_attention", _backward, save)
    _items_attention = differentiable("items_attention", _backward_of_items, _save_items)
