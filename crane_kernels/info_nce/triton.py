"""``info_nce`` by Triton kernels: the logits exist a tile at a time, in registers; memory O(n).

A row is read raw and scaled in the kernel, first by the power of two that brings its largest element to [1, 2), which
loses nothing in any dtype, then, in float32 and after the product, by the inverse of its norm. So neither do large or
tiny rows overflow, nor does half precision round the directions that are compared.

Bytes moved, with e bytes an element and R = ceil(n / BLOCK_M) blocks of rows, for each direction of the loss:

    forward    loads  e n d (1 + R)    each block of rows, and all rows of the other view for each block
               stores 8 n              loss and log-sum-exp of each row

and for the gradients of ``a`` and ``b`` together, where R e bytes are the gradient of the loss itself:

    backward   loads  2 (e n d (1 + R) + e R) + 4 n (3 + R), or in the symmetric form + 8 n (3 + R)
               stores 2 e n d

Labels add 8 n (1 + R) to each direction of the forward and to each of the two gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from crane_kernels import triton_support

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
SHARE_SCALE = tl.constexpr(4096.0)  # shares of a softmax over thousands of rows would be denormal in float16

# As many warps as hold a program's rows in registers, without spills on any chip.
FORWARD_CONFIGS = [triton_support.config(num_warps=4, num_stages=1)]
BACKWARD_CONFIGS = [triton_support.config(num_warps=8, num_stages=stages) for stages in (1, 2)]


def tile(dtype: torch.dtype, width: int) -> tuple[int, int]:
    """BLOCK_M and BLOCK_N: rows of either view that a program compares at a time, as many as fit the registers."""
    if dtype == torch.float32:
        return (16, 16) if 64 < width <= 128 else (32, 16)
    return (64, 16) if width <= 64 else (32, 16) if width <= 128 else (16, 16)


def refuses(a: Tensor, *_: Any) -> str | None:
    """Why the Triton kernels cannot compute the loss of ``a``; ``None`` when they can."""
    return triton_support.refuses("a", a, a.shape[1])


@triton.jit
def _load_rows(pointer, left, width, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """BLOCK rows at ``pointer``, ``left`` of which exist, times the power of two that brings each's largest to [1, 2).

    Then that power, and the inverse norm of the result: 0 for rows of zeros and rows that do not exist.
    """
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    mask = (rows < left)[:, None] & (columns < width)[None, :]
    x = tl.load(pointer + (rows[:, None] * width + columns[None, :]), mask=mask, other=0.0).to(tl.float32)
    exponent = tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True) >> 23
    power = (tl.maximum(254 - exponent, 1) << 23).to(tl.float32, bitcast=True)
    x = x * power[:, None]
    squares = tl.sum(x * x, 1)
    inverse = tl.where(squares == 0.0, 0.0, tl.rsqrt(tl.where(squares == 0.0, 1.0, squares)))
    return x.to(pointer.dtype.element_ty), power, inverse


@triton.jit
def _labels(ids, start, n, HAS_IDS: tl.constexpr, BLOCK: tl.constexpr):
    """Labels of BLOCK rows from ``start`` on; zeros where there are none."""
    labels = tl.zeros([BLOCK], tl.int64)
    if HAS_IDS:
        labels = tl.load(ids + start + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < n - start, other=0)
    return labels


@triton.jit
def _pairs(ids, labels, first, start, n, HAS_IDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which of a tile's pairs are positives, and which take part: columns that exist, no others of the row's label."""
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    positive = columns[None, :] - rows[:, None] == (first - start).to(tl.int32)
    kept = (columns < n - start)[None, :]
    if HAS_IDS:
        others = _labels(ids, start, n, HAS_IDS, BLOCK_N)
        kept = kept & ((labels[:, None] != others[None, :]) | positive)
    return positive, kept


def _specimen(dtype: torch.dtype, width: int, pointers: dict[str, str], **constants: bool) -> list[dict[str, Any]]:
    block_m, block_n = tile(dtype, width)
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": triton_support.padded(width)}
    return [{"n": "i32", "width": "i32", "scale": "fp32", "PRECISION": "ieee", **pointers, **constants, **sizes}]


def _forward_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    pointers = {"a": "*x", "b": "*x", "ids": "*i64", "row_loss": "*fp32", "log_sum": "*fp32"}
    return _specimen(dtype, width, pointers, HAS_IDS=True)


@triton_support.kernel(_forward_specimens, FORWARD_CONFIGS, key=["width", "HAS_IDS"])
def info_nce_fwd_kernel(
    a,
    b,
    ids,
    row_loss,
    log_sum,
    n,
    width,
    scale,
    HAS_IDS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Loss of each row of ``a``, and its log2-sum-exp2; ``scale`` is 1 / temperature."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    x, _power, inverse = _load_rows(a + first * width, n - first, width, BLOCK_M, BLOCK_D)
    labels = _labels(ids, first, n, HAS_IDS, BLOCK_M)
    factor = inverse * (scale * LOG2_E)
    top = tl.zeros([BLOCK_M], tl.float32) - scale * LOG2_E  # no cosine is less than -1
    total = tl.zeros([BLOCK_M], tl.float32)
    positive = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, n, BLOCK_N):
        y, _other_power, other = _load_rows(b, n - start, width, BLOCK_N, BLOCK_D)
        b += BLOCK_N * width
        logit = tl.dot(x, tl.trans(y), input_precision=PRECISION) * factor[:, None] * other[None, :]
        matched, kept = _pairs(ids, labels, first, start, n, HAS_IDS, BLOCK_M, BLOCK_N)
        positive += tl.sum(tl.where(matched, logit, 0.0), 1)
        logit = tl.where(kept, logit, float("-inf"))
        higher = tl.maximum(top, tl.max(logit, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logit - higher[:, None]), 1)
        top = higher
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(log_sum + rows, top + tl.log2(total), mask=rows < n)
    tl.store(row_loss + rows, (top - positive + tl.log2(total)) * LN_2, mask=rows < n)


def _backward_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    rows = dict.fromkeys(("loss_x", "log_sum_x", "loss_y", "log_sum_y"), "*fp32")
    pointers = {"grad": "*x", "x_rows": "*x", "y_rows": "*x", "ids": "*i64", "out": "*x", "weight": "fp32", **rows}
    return _specimen(dtype, width, pointers, HAS_IDS=True, FROM_X=True, FROM_Y=True)


@triton_support.kernel(_backward_specimens, BACKWARD_CONFIGS, key=["width", "HAS_IDS", "FROM_X", "FROM_Y"])
def info_nce_bwd_kernel(
    grad,
    x_rows,
    y_rows,
    ids,
    loss_x,
    log_sum_x,
    loss_y,
    log_sum_y,
    out,
    n,
    width,
    scale,
    weight,
    HAS_IDS: tl.constexpr,
    FROM_X: tl.constexpr,
    FROM_Y: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradient of the rows of x, whose logits with those of y are computed again.

    ``FROM_X``: the softmax of each row of x over y is part of the loss; ``FROM_Y``: that of each row of y over x.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    x, power, inverse = _load_rows(x_rows + first * width, n - first, width, BLOCK_M, BLOCK_D)
    labels = _labels(ids, first, n, HAS_IDS, BLOCK_M)
    factor = inverse * (scale * LOG2_E)
    # Near 1, a positive's share is known better from the loss than from the rounded logit.
    surplus = tl.zeros([BLOCK_M], tl.float32)
    if FROM_X:
        log_sum = tl.load(log_sum_x + rows, mask=rows < n, other=0.0)
        surplus += tl.exp(-tl.load(loss_x + rows, mask=rows < n, other=0.0)) - 1.0
    if FROM_Y:
        surplus += tl.exp(-tl.load(loss_y + rows, mask=rows < n, other=0.0)) - 1.0
    unit_grad = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_N):
        y, _other_power, other = _load_rows(y_rows, n - start, width, BLOCK_N, BLOCK_D)
        y_rows += BLOCK_N * width
        logit = tl.dot(x, tl.trans(y), input_precision=PRECISION) * factor[:, None] * other[None, :]
        matched, kept = _pairs(ids, labels, first, start, n, HAS_IDS, BLOCK_M, BLOCK_N)
        logit = tl.where(kept, logit, float("-inf"))
        share = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if FROM_X:
            share += tl.exp2(logit - log_sum[:, None])
        if FROM_Y:
            columns = start + tl.arange(0, BLOCK_N)
            share += tl.exp2(logit - tl.load(log_sum_y + columns, mask=columns < n, other=0.0)[None, :])
        share = tl.where(matched, surplus[:, None], share) * (other * SHARE_SCALE)[None, :]
        unit_grad = tl.dot(share.to(y.dtype), y, unit_grad, input_precision=PRECISION)
    unit_grad *= tl.load(grad).to(tl.float32) * (weight / SHARE_SCALE)
    unit = x.to(tl.float32) * inverse[:, None]
    tangent = (unit_grad - unit * tl.sum(unit * unit_grad, 1)[:, None]) * inverse[:, None] * power[:, None]
    places = tl.arange(0, BLOCK_M)[:, None] * width + tl.arange(0, BLOCK_D)[None, :]
    mask = (rows < n)[:, None] & (tl.arange(0, BLOCK_D) < width)[None, :]
    tl.store(out + first * width + places, tangent.to(out.dtype.element_ty), mask=mask)


def _launch(kernel: Any, n: int, ids: Tensor | None, like: Tensor, *arguments: Any, **constants: bool) -> None:
    """Launch over blocks of the n rows; the arguments are the kernel's, with None where the labels belong."""
    block_m, block_n = tile(like.dtype, like.shape[1])
    # An absent tensor is any other, which the kernel does not touch.
    labels = like if ids is None else ids.long().contiguous()
    wrap_triton(kernel)[(triton.cdiv(n, block_m),)](
        *(labels if argument is None else argument for argument in arguments),
        HAS_IDS=ids is not None,
        PRECISION=triton_support.input_precision(like.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=triton_support.padded(like.shape[1]),
        **constants,
    )


def _forward_fake(
    a: Tensor, _b: Tensor, _ids: Tensor | None, _temperature: float, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    of_rows = a.new_empty(1 + symmetric, a.shape[0], dtype=torch.float32)
    return a.new_empty(()), of_rows, torch.empty_like(of_rows)


@triton_support.operator("info_nce_triton", _forward_fake)
def _forward(
    a: Tensor, b: Tensor, ids: Tensor | None, temperature: float, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, then the loss and the log2-sum-exp2 of each row in each direction: (directions, n) float32."""
    a, b = a.contiguous(), b.contiguous()
    n, width = a.shape
    row_loss = a.new_empty(1 + symmetric, n, dtype=torch.float32)
    log_sum = torch.empty_like(row_loss)
    for direction, (x, y) in enumerate([(a, b), (b, a)][: 1 + symmetric]):
        rows = row_loss[direction], log_sum[direction]
        _launch(info_nce_fwd_kernel, n, ids, a, x, y, None, *rows, n, width, 1 / temperature)
    return row_loss.mean().to(a.dtype), row_loss, log_sum


def _gradient_fake(_grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@triton_support.operator("info_nce_triton_gradient", _gradient_fake)
def _gradient(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    ids: Tensor | None,
    row_loss: Tensor,
    log_sum: Tensor,
    temperature: float,
    of_b: bool,
) -> Tensor:
    """Gradient of x, which is ``b`` (y is ``a``) or the other way round."""
    x, y = x.contiguous(), y.contiguous()
    n, width = x.shape
    directions = row_loss.shape[0]
    own, others = (-1, 0) if of_b else (0, -1)
    saved = row_loss[own], log_sum[own], row_loss[others], log_sum[others]
    out = torch.empty_like(x)
    _launch(
        info_nce_bwd_kernel,
        n,
        ids,
        x,
        *(grad, x, y, None, *saved, out, n, width, 1 / temperature, 1 / (temperature * n * directions)),
        FROM_X=directions == 2 or not of_b,
        FROM_Y=directions == 2 or of_b,
    )
    return out


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, ids, ctx.temperature, _ = inputs
    ctx.save_for_backward(a, b, ids, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    a, b, *saved = ctx.saved_tensors
    grads = [
        _gradient(grad, x, y, *saved, ctx.temperature, of_b) if needed else None
        for needed, x, y, of_b in zip(ctx.needs_input_grad[:2], (a, b), (b, a), (False, True), strict=True)
    ]
    return *grads, None, None, None


_forward.register_autograd(_backward, setup_context=_save)


def info_nce(a: Tensor, b: Tensor, temperature: float, ids: Tensor | None, symmetric: bool) -> Tensor:
    """InfoNCE of the rows of ``a`` and ``b``: scalar."""
    loss: Tensor = _forward(a, b, ids, temperature, symmetric)[0]
    return loss
