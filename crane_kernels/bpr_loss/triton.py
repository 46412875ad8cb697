"""``bpr_loss`` by Triton kernels: gathers, dot products, log-sigmoid and partial means of B triples in one launch.

Backward adds no floats atomically: the indices are sorted once, stably, and the program at the first place of each
segment of equal indices adds its rows in a fixed order, so that gradients are the same bits on every run. An index
out of range makes the loss NaN and touches no memory.

Bytes that the forward moves, with e bytes an element, c bytes an index and BLOCK_B triples a program:

    loads   B (3 e d + 3 c)            each triple's indices and its three rows
    stores  4 B + 4 ceil(B / BLOCK_B)  a derivative for each triple, a partial loss for each program
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from crane_kernels import triton_support

CONFIGS = [triton_support.config(num_warps=warps, num_stages=1, maxnreg=128) for warps in (4, 8)]


def block(width: int) -> int:
    """BLOCK_B: triples whose rows a program holds at a time, as many as fit the registers."""
    return max(4, min(16, 1024 // triton_support.padded(width)))


def refuses(user: Tensor, *_: Any) -> str | None:
    """Why the Triton kernels cannot compute the loss of ``user``; ``None`` when they can."""
    return triton_support.refuses("user", user, user.shape[1])


@triton.jit
def _gather(table, rows, valid, width, BLOCK_D: tl.constexpr):
    """``table[rows]`` in float32, zero where not valid."""
    columns = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (columns < width)[None, :]
    return tl.load(table + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)


def _specimen(width: int, pointers: dict[str, str], sizes: tuple[str, ...]) -> list[dict[str, Any]]:
    blocks = {"BLOCK_B": block(width), "BLOCK_D": triton_support.padded(width)}
    return [pointers | dict.fromkeys((*sizes, "batch", "width"), "i32") | blocks]


def _forward_specimens(_dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    index = dict.fromkeys(("users", "positives", "negatives"), "*i64")
    pointers = {"user": "*x", "item": "*x", "slope": "*fp32", "partial": "*fp32", **index}
    return _specimen(width, pointers, ("n_users", "n_items"))


@triton_support.kernel(_forward_specimens, CONFIGS, key=["width"])
def bpr_loss_fwd_kernel(
    user,
    item,
    users,
    positives,
    negatives,
    slope,
    partial,
    batch,
    n_users,
    n_items,
    width,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each block's part of the mean loss, and each triple's derivative of the mean loss by its margin."""
    block = tl.program_id(0).to(tl.int64)
    triples = block * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = triples < batch
    u = tl.load(users + triples, mask=inside, other=0)
    p = tl.load(positives + triples, mask=inside, other=0)
    n = tl.load(negatives + triples, mask=inside, other=0)
    valid = (u >= 0) & (u < n_users) & (p >= 0) & (p < n_items) & (n >= 0) & (n < n_items)
    present = inside & valid
    difference = _gather(item, p, present, width, BLOCK_D) - _gather(item, n, present, width, BLOCK_D)
    margin = tl.sum(_gather(user, u, present, width, BLOCK_D) * difference, 1)
    margin = tl.where(valid, margin, float("nan"))
    small = tl.exp(-tl.abs(margin))
    one_more = 1.0 + small
    # log(1 + small) without the error of rounding 1 + small (Kahan)
    log1p = tl.where(one_more == 1.0, small, tl.log(one_more) * (small / (one_more - 1.0)))
    loss = tl.where(margin > 0.0, log1p, log1p - margin)
    tl.store(partial + block, tl.sum(tl.where(inside, loss, 0.0), 0) / batch)
    sigmoid = tl.where(margin > 0.0, small, 1.0) / one_more  # of -margin
    tl.store(slope + triples, -sigmoid / batch, mask=inside)


@triton.jit
def _segment_chunk(keys, order, start, key, size, BLOCK_B: tl.constexpr):
    """Which of the places from ``start`` on belong to the segment of ``key``, and what was sorted there."""
    places = start + tl.arange(0, BLOCK_B)
    inside = places < size
    inside = inside & (tl.load(keys + places, mask=inside, other=-1) == key)
    return inside, tl.load(order + places, mask=inside, other=0)


def _user_specimens(_dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    index = dict.fromkeys(("positives", "negatives", "keys", "order"), "*i64")
    return _specimen(width, {"grad": "*x", "item": "*x", "slope": "*fp32", "grad_user": "*x", **index}, ("n_users",))


@triton_support.kernel(_user_specimens, CONFIGS, key=["width"])
def bpr_loss_bwd_user_kernel(
    grad,
    item,
    positives,
    negatives,
    slope,
    keys,
    order,
    grad_user,
    batch,
    n_users,
    width,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row of the gradient of ``user``: slope * (p - n) over the triples of that user; ``keys`` are sorted users."""
    place = tl.program_id(0).to(tl.int64)
    key = tl.load(keys + place).to(tl.int64)
    before = tl.load(keys + place - 1, mask=place > 0, other=-1).to(tl.int64)
    if (key != before) & (key >= 0) & (key < n_users):
        total = tl.zeros([BLOCK_D], tl.float32)
        more = True
        while more:
            inside, triple = _segment_chunk(keys, order, place, key, batch, BLOCK_B)
            p = tl.load(positives + triple, mask=inside, other=0)
            n = tl.load(negatives + triple, mask=inside, other=0)
            derivative = tl.load(slope + triple, mask=inside, other=0.0)
            # NaN marks a triple with an index out of range: its rows are not read
            present = inside & (derivative == derivative)
            rows = _gather(item, p, present, width, BLOCK_D) - _gather(item, n, present, width, BLOCK_D)
            total += tl.sum(derivative[:, None] * rows, 0)
            place += BLOCK_B
            more = tl.sum(inside.to(tl.int32), 0) == BLOCK_B
        columns = tl.arange(0, BLOCK_D)
        total *= tl.load(grad).to(tl.float32)
        tl.store(grad_user + key * width + columns, total.to(grad_user.dtype.element_ty), mask=columns < width)


def _item_specimens(_dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    index = dict.fromkeys(("users", "keys", "order"), "*i64")
    return _specimen(width, {"grad": "*x", "user": "*x", "slope": "*fp32", "grad_item": "*x", **index}, ("n_items",))


@triton_support.kernel(_item_specimens, CONFIGS, key=["width"])
def bpr_loss_bwd_item_kernel(
    grad,
    user,
    users,
    slope,
    keys,
    order,
    grad_item,
    batch,
    n_items,
    width,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row of the gradient of ``item``: slope * u over the triples it is positive in, less those it is negative in.

    ``keys`` are the sorted positives and negatives; ``order`` is where they came from: negatives from ``batch`` on.
    """
    place = tl.program_id(0).to(tl.int64)
    key = tl.load(keys + place).to(tl.int64)
    before = tl.load(keys + place - 1, mask=place > 0, other=-1).to(tl.int64)
    if (key != before) & (key >= 0) & (key < n_items):
        total = tl.zeros([BLOCK_D], tl.float32)
        more = True
        while more:
            inside, origin = _segment_chunk(keys, order, place, key, 2 * batch, BLOCK_B)
            triple = tl.where(origin < batch, origin, origin - batch)
            u = tl.load(users + triple, mask=inside, other=0)
            derivative = tl.load(slope + triple, mask=inside, other=0.0)
            present = inside & (derivative == derivative)
            signed = tl.where(origin < batch, derivative, -derivative)
            total += tl.sum(signed[:, None] * _gather(user, u, present, width, BLOCK_D), 0)
            place += BLOCK_B
            more = tl.sum(inside.to(tl.int32), 0) == BLOCK_B
        columns = tl.arange(0, BLOCK_D)
        total *= tl.load(grad).to(tl.float32)
        tl.store(grad_item + key * width + columns, total.to(grad_item.dtype.element_ty), mask=columns < width)


def _forward_fake(
    user: Tensor, _item: Tensor, users: Tensor, _positives: Tensor, _negatives: Tensor
) -> tuple[Tensor, Tensor]:
    return user.new_empty(()), user.new_empty(users.shape[0], dtype=torch.float32)


@triton_support.operator("bpr_loss_triton", _forward_fake)
def _forward(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative by each triple's margin: (B,) float32."""
    batch, width = users.shape[0], user.shape[1]
    block_b = block(width)
    blocks = triton.cdiv(batch, block_b)
    slope = user.new_empty(batch, dtype=torch.float32)
    partial = user.new_empty(blocks, dtype=torch.float32)
    wrap_triton(bpr_loss_fwd_kernel)[(blocks,)](
        *(tensor.contiguous() for tensor in (user, item, users, positives, negatives)),
        *(slope, partial, batch, user.shape[0], item.shape[0], width),
        BLOCK_B=block_b,
        BLOCK_D=triton_support.padded(width),
    )
    return partial.sum().to(user.dtype), slope


def _gradients_fake(_grad: Tensor, user: Tensor, item: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return user.new_empty(user.shape), item.new_empty(item.shape)


@triton_support.operator("bpr_loss_triton_gradients", _gradients_fake)
def _gradients(
    grad: Tensor, user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``user`` and ``item``."""
    batch, width = users.shape[0], user.shape[1]
    user, item, users, positives, negatives = (
        tensor.contiguous() for tensor in (user, item, users, positives, negatives)
    )
    grad_user, grad_item = (torch.zeros_like(table) for table in (user, item))
    blocks = {"BLOCK_B": block(width), "BLOCK_D": triton_support.padded(width)}
    keys, order = users.sort(stable=True)
    wrap_triton(bpr_loss_bwd_user_kernel)[(batch,)](
        grad, item, positives, negatives, slope, keys, order, grad_user, batch, user.shape[0], width, **blocks
    )
    keys, order = torch.cat([positives, negatives]).sort(stable=True)
    wrap_triton(bpr_loss_bwd_item_kernel)[(2 * batch,)](
        grad, user, users, slope, keys, order, grad_item, batch, item.shape[0], width, **blocks
    )
    return grad_user, grad_item


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *_gradients(grad, *ctx.saved_tensors), None, None, None


_forward.register_autograd(_backward, setup_context=_save)


def bpr_loss(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Mean of -log sigmoid(<u, p> - <u, n>) over the triples: scalar."""
    loss: Tensor = _forward(user, item, users, positives, negatives)[0]
    return loss
