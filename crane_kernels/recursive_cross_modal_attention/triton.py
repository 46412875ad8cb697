"""``recursive_cross_modal_attention`` in Gram form by Triton kernels: names as in the public function, X = x[:, m].

The kernels of d x d matrices here serve every size; those over rows, where :func:`fits` says so: for d to 64, where M
times d, each padded to a power of two, is at most 128, or 96 with three modalities or more. Beyond, and to d = 256 and
M = 4, :mod:`~crane_kernels.recursive_cross_modal_attention.triton_wide` has others in the same number of launches.

A recursion is one pass over the rows, whose programs each take a chunk of them and keep the weights and their part of
the Gram matrix on chip: it reads X once, writes X once, and leaves a part of the next Gram matrix a program, which
the next kernel sums in their order. Nothing is added atomically, so results repeat. Tiles of rows are transposed,
(width, rows): the weights are then the left operand of each product, which the warps of a program share out among
themselves and keep in registers, where Triton would give each warp a copy of a right operand.

Backward goes over the rows twice a recursion: once for the gradients of B_m and V_m, once for that of X. Their
formulas, with U_m = X_m B_m and A_m = X_m^T E * scale::

    dU_m = (dY_m V_m^T) where U_m > 0        dV_m = relu(U_m)^T dY_m        dB_m = X_m^T dU_m
    dW_m = dB_m C_m^T        dA_m = W_m^T dB_m * (1 - C_m^2) * scale        dW_E = G dA        db_E = dA^T X^T 1
    dX   = dY + [dU_m B_m^T]_m + X (dA W_E^T + W_E dA^T) + dA b_E

Bytes of a recursion with P and P' programs for a modality, in elements (the sums' are of float32), over the fewest::

    forward   2 N M d + P d^2 (3 M + M (M + 1) / 2 + M^2)     over 2 N M d, X read and written
    backward  (4 + M) N M d + P' M d^2 (8 + M)                over 5 N M d, X and dY read twice and dX written

as each program reads the weights and leaves its part of the sums, which is read once more, and backward reads X again
for each modality beyond the first. P is at most FORWARD_PROGRAMS, P' that over M, each of SMALLEST_CHUNK rows or more.
With M = 2, d = 64 and float32: 1.10 forward and 1.23 backward at N = 255,404; 1.40 and 1.32 at N = 63,001; 1.82 and
1.49 at N = 26,495. For 1.1 forward there, 12 programs would have to do the work of 104, and most of the device would be
idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from crane_kernels import triton_support
from crane_kernels.recursive_cross_modal_attention import reference, triton_wide
from crane_kernels.recursive_cross_modal_attention.triton_wide import constants, product
from crane_kernels.triton_support import config, in_chunks, kernel, operator, padded

FORWARD_PROGRAMS = 120  # about one a multiprocessor of the larger chips: each costs its weights and its part of G
SMALLEST_CHUNK = 256
WIDEST = 64
TOTAL_WIDTH = 128  # of all modalities: beyond it the Gram matrix does not fit a program's registers
TOTAL_WIDTH_OF_MANY = 96  # of three and more, which have more blocks of it


@triton.constexpr_function
def pair_index(first, second, modalities):
    """The place of the Gram matrix's block (first, second), first <= second, among a program's."""
    return first * modalities - first * (first - 1) // 2 + second - first


@triton.jit
def load_matrix(pointer, stride, WIDTH: tl.constexpr, D: tl.constexpr):
    """A (WIDTH, WIDTH) matrix, padded with zeros to (D, D)."""
    place = tl.arange(0, D)
    inside = (place[:, None] < WIDTH) & (place[None, :] < WIDTH)
    return tl.load(pointer + place[:, None] * stride + place[None, :], mask=inside, other=0.0)


@triton.jit
def product_transposed(left, right, WIDTH: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr):
    """(left @ right)^T of two (WIDTH, WIDTH) matrices, a few inner columns at a time to spare registers."""
    place = tl.arange(0, D)
    total = tl.zeros((D, D), tl.float32)
    for start in tl.range(0, D, 16):
        inner = start + tl.arange(0, 16)
        inside = (place < WIDTH)[:, None] & (inner < WIDTH)[None, :]
        columns = tl.load(right + inner[None, :] * WIDTH + place[:, None], mask=inside, other=0.0)
        rows = tl.load(left + place[:, None] * WIDTH + inner[None, :], mask=inside, other=0.0)
        total = tl.dot(columns, tl.trans(rows).to(tl.float32), total, input_precision=PRECISION)
    return total


@triton.jit
def tanh(a):
    """Hyperbolic tangent within 2e-7 of itself; near zero by a polynomial fitted to it by least squares."""
    z = a * a
    series = 0.0022958419 * z - 0.00834697
    series = (((series * z + 0.02176996) * z - 0.0539594032) * z + 0.133333042) * z - 0.3333333433
    return tl.where(tl.abs(a) < 0.625, a + a * z * series, 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0))


@triton.jit
def sum_of_parts(pointer, stride, parts, offsets, inside, TOGETHER: tl.constexpr):
    """Tile at ``offsets`` summed over the parts that lie ``stride`` apart, TOGETHER at a time, in a fixed order."""
    place = tl.arange(0, TOGETHER)
    total = tl.zeros(offsets.shape, tl.float32)
    for first in tl.range(0, parts, TOGETHER):
        part = (first + place)[:, None, None]
        values = tl.load(
            pointer + part.to(tl.int64) * stride + offsets[None, :, :],
            mask=inside[None, :, :] & (part < parts),
            other=0.0,
        )
        total += tl.sum(values, 0)
    return total


TILES = [config(8, 1, BLOCK=16), config(8, 2, BLOCK=16)]


def served(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: the constants of each kernel, with as many modalities as :func:`refuses` lets pass."""
    most = max((count for count in range(1, 5) if fits(count, width)), default=0)
    precisions = ("ieee", "tf32") if dtype == torch.float32 else ("ieee",)
    sizes = {"MODALITIES": most, "WIDTH": width, "D": padded(width)}
    return [sizes | {"PRECISION": precision} for precision in precisions if most]


def fits(modalities: int, width: int) -> bool:
    """Whether the Gram matrix and the weights fit a program's registers."""
    most = TOTAL_WIDTH if modalities <= 2 else TOTAL_WIDTH_OF_MANY
    return padded(width) <= WIDEST and modalities * padded(width) <= most


def pass_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: the passes with and without the Gram matrix."""
    return [
        dict.fromkeys(("x", "w_attend", "w_out", "mixed", "result"), "*x")
        | dict.fromkeys(("correlation", "gram_parts", "sums_parts"), "*fp32")
        | {"n": "i32", "chunk": "i32", "GRAM": gram}
        | constants
        for constants in served(dtype, width)
        for gram in (True, False)
    ]


@kernel(pass_specimens, TILES[:1], ["MODALITIES", "WIDTH", "GRAM"])
def rca_pass_kernel(
    x, w_attend, correlation, w_out, mixed, result, gram_parts, sums_parts, n, chunk,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, GRAM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One recursion on a chunk of rows, and this chunk's part of the Gram matrix and column sums of its result.

    The first program stores B_m for backward. Bytes: 2 N M d of the features' dtype; for each program also the weights
    w_attend and w_out, C, and its part of G: 4 M (M + 1) / 2 d^2 bytes, once here and once where they are summed.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, D)
    square = columns[:, None] * WIDTH + columns[None, :]
    square_inside = (columns[:, None] < WIDTH) & (columns[None, :] < WIDTH)
    size: tl.constexpr = WIDTH * WIDTH
    mixers = ()
    outs = ()
    for m in tl.static_range(MODALITIES):
        mixer = product_transposed(w_attend + m * size, correlation + m * size, WIDTH, D, PRECISION)
        mixer = mixer.to(x.dtype.element_ty)
        if program == 0:
            tl.store(mixed + m * size + square, tl.trans(mixer), mask=square_inside)
        mixers = mixers + (mixer,)
        outs = outs + (tl.trans(load_matrix(w_out + m * size, WIDTH, WIDTH, D)),)
    gram = ()
    sums = ()
    if GRAM:
        gram, sums = no_moments(MODALITIES, D)
    for start in tl.range(0, tl.minimum(chunk, n - program * chunk), BLOCK):
        rows = program * chunk + start + tl.arange(0, BLOCK)
        inside = (rows[None, :] < n) & (columns[:, None] < WIDTH)
        offsets = rows[None, :] * (MODALITIES * WIDTH) + columns[:, None]
        refined = ()
        for m in tl.static_range(MODALITIES):
            features = tl.load(x + offsets + m * WIDTH, mask=inside, other=0.0)
            attended = tl.maximum(tl.dot(mixers[m], features, input_precision=PRECISION), 0.0).to(features.dtype)
            new = tl.dot(outs[m], attended, features.to(tl.float32), input_precision=PRECISION).to(features.dtype)
            tl.store(result + offsets + m * WIDTH, new, mask=inside)
            refined = refined + (new,)
        if GRAM:
            gram, sums = add_moments(refined, gram, sums, MODALITIES, PRECISION)
    if GRAM:
        store_moments(gram, sums, gram_parts, sums_parts, program, MODALITIES, WIDTH, D)


@triton.jit
def no_moments(MODALITIES: tl.constexpr, D: tl.constexpr):
    """Gram blocks and column sums of no rows."""
    gram = ()
    sums = ()
    for m in tl.static_range(MODALITIES):
        sums = sums + (tl.zeros((D,), tl.float32),)
        for _ in tl.static_range(m, MODALITIES):
            gram = gram + (tl.zeros((D, D), tl.float32),)
    return gram, sums


@triton.jit
def add_moments(features, gram, sums, MODALITIES: tl.constexpr, PRECISION: tl.constexpr):
    """Gram blocks and column sums, to which those of a tile of each modality's features are added."""
    new_gram = ()
    new_sums = ()
    for m in tl.static_range(MODALITIES):
        new_sums = new_sums + (sums[m] + tl.sum(features[m].to(tl.float32), 1),)
        for other in tl.static_range(m, MODALITIES):
            block = gram[pair_index(m, other, MODALITIES)]
            block = tl.dot(features[m], tl.trans(features[other]), block, input_precision=PRECISION)
            new_gram = new_gram + (block,)
    return new_gram, new_sums


@triton.jit
def store_moments(
    gram, sums, gram_parts, sums_parts, program, MODALITIES: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr
):
    """Write a program's part: gram_parts (programs, pairs, WIDTH, WIDTH), sums_parts (programs, MODALITIES, WIDTH)."""
    columns = tl.arange(0, D)
    square = columns[:, None] * WIDTH + columns[None, :]
    inside = (columns[:, None] < WIDTH) & (columns[None, :] < WIDTH)
    pairs: tl.constexpr = MODALITIES * (MODALITIES + 1) // 2
    for m in tl.static_range(MODALITIES):
        tl.store(sums_parts + (program * MODALITIES + m) * WIDTH + columns, sums[m], mask=columns < WIDTH)
        for other in tl.static_range(m, MODALITIES):
            part = gram_parts + (program * pairs + pair_index(m, other, MODALITIES)) * (WIDTH * WIDTH)
            tl.store(part + square, gram[pair_index(m, other, MODALITIES)], mask=inside)


def gram_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = {"x": "*x", "gram_parts": "*fp32", "sums_parts": "*fp32", "n": "i32", "chunk": "i32"}
    return [arguments | constants for constants in served(dtype, width)]


@kernel(gram_specimens, [config(8, 1, 255, BLOCK=16)], ["MODALITIES", "WIDTH"])
def rca_gram_kernel(
    x, gram_parts, sums_parts, n, chunk,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk's part of the Gram matrix and column sums of X: reads X once."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, D)
    gram, sums = no_moments(MODALITIES, D)
    for start in tl.range(0, tl.minimum(chunk, n - program * chunk), BLOCK):
        rows = program * chunk + start + tl.arange(0, BLOCK)
        inside = (rows[None, :] < n) & (columns[:, None] < WIDTH)
        offsets = rows[None, :] * (MODALITIES * WIDTH) + columns[:, None]
        features = ()
        for m in tl.static_range(MODALITIES):
            features = features + (tl.load(x + offsets + m * WIDTH, mask=inside, other=0.0),)
        gram, sums = add_moments(features, gram, sums, MODALITIES, PRECISION)
    store_moments(gram, sums, gram_parts, sums_parts, program, MODALITIES, WIDTH, D)


def correlation_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = dict.fromkeys(("gram_parts", "sums_parts", "gram", "sums", "correlation"), "*fp32")
    arguments |= {"w_joint": "*x", "b_joint": "*x", "parts": "i32", "scale": "fp32"}
    return [arguments | constants for constants in triton_wide.served(dtype, width, narrowest=16)]


SMALL = [config(4, 2, 255, ROWS=16, TILE=64, BYTES=64)]


@kernel(correlation_specimens, SMALL, ["MODALITIES", "WIDTH"])
def rca_correlation_kernel(
    gram_parts, sums_parts, w_joint, b_joint, gram, sums, correlation, parts, scale,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Sum the parts of G and of the column sums, and from them ROWS rows of C_m, for each modality and rows of it."""
    tiles: tl.constexpr = (WIDTH + ROWS - 1) // ROWS
    m = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    row_inside = rows < WIDTH
    place = tl.arange(0, TILE)
    size: tl.constexpr = WIDTH * WIDTH
    pairs: tl.constexpr = MODALITIES * (MODALITIES + 1) // 2
    total: tl.constexpr = MODALITIES * WIDTH
    gram += m * WIDTH * total
    for other in tl.range(MODALITIES):
        low = tl.minimum(m, other)
        pair = low * MODALITIES - low * (low - 1) // 2 + tl.maximum(m, other) - low
        row_stride = tl.where(m <= other, WIDTH, 1)
        column_stride = tl.where(m <= other, 1, WIDTH)
        for start in tl.range(0, WIDTH, TILE):
            columns = start + place
            inside = row_inside[:, None] & (columns < WIDTH)[None, :]
            offsets = pair * size + rows[:, None] * row_stride + columns[None, :] * column_stride
            block = sum_of_parts(gram_parts, pairs * size, parts, offsets, inside, 8)
            tl.store(gram + rows[:, None] * total + other * WIDTH + columns[None, :], block, mask=inside)
    column = rows[:, None]
    column_sums = sum_of_parts(sums_parts + m * WIDTH, total, parts, column, column < WIDTH, 8)
    tl.store(sums + m * WIDTH + column, column_sums, mask=column < WIDTH)
    tl.debug_barrier()
    for start in tl.range(0, WIDTH, TILE):
        columns = start + place
        bias = tl.load(b_joint + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        scores = product(
            gram, rows * total, 1, w_joint, WIDTH, columns, row_inside, columns < WIDTH, total,
            column_sums * bias[None, :], tl.float32, WIDTH, PRECISION, BYTES,
        )  # fmt: skip
        inside = row_inside[:, None] & (columns < WIDTH)[None, :]
        offsets = m * size + rows[:, None] * WIDTH + columns[None, :]
        tl.store(correlation + offsets, tanh(scores * scale), mask=inside)


def weight_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = dict.fromkeys(("x", "grad", "mixed", "w_out"), "*x")
    arguments |= {"mixed_parts": "*fp32", "out_parts": "*fp32", "n": "i32", "chunk": "i32"}
    return [arguments | constants for constants in served(dtype, width)]


@kernel(weight_specimens, TILES, ["MODALITIES", "WIDTH"])
def rca_weight_gradients_kernel(
    x, grad, mixed, w_out, mixed_parts, out_parts, n, chunk,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk's part of the gradients of B_m (transposed) and V_m, a program for each chunk and modality.

    Bytes: 2 N M d of the features' dtype, X and its gradient; for each chunk also B and V, and twice its two parts,
    here and where they are summed.
    """
    program = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1)
    columns = tl.arange(0, D)
    size: tl.constexpr = WIDTH * WIDTH
    mixer = tl.trans(load_matrix(mixed + m * size, WIDTH, WIDTH, D))
    out = load_matrix(w_out + m * size, WIDTH, WIDTH, D)
    grad_mixed = tl.zeros((D, D), tl.float32)
    grad_out = tl.zeros((D, D), tl.float32)
    for start in tl.range(0, tl.minimum(chunk, n - program * chunk), BLOCK):
        rows = program * chunk + start + tl.arange(0, BLOCK)
        inside = (rows[None, :] < n) & (columns[:, None] < WIDTH)
        offsets = (rows[None, :] * MODALITIES + m) * WIDTH + columns[:, None]
        features = tl.load(x + offsets, mask=inside, other=0.0)
        above = tl.load(grad + offsets, mask=inside, other=0.0)
        attended = tl.dot(mixer, features, input_precision=PRECISION)
        grad_attended = tl.dot(out, above, input_precision=PRECISION)
        grad_attended = tl.where(attended > 0, grad_attended, 0.0).to(features.dtype)
        attended = tl.maximum(attended, 0.0).to(features.dtype)
        grad_mixed = tl.dot(grad_attended, tl.trans(features), grad_mixed, input_precision=PRECISION)
        grad_out = tl.dot(attended, tl.trans(above), grad_out, input_precision=PRECISION)
    square = columns[:, None] * WIDTH + columns[None, :]
    inside = (columns[:, None] < WIDTH) & (columns[None, :] < WIDTH)
    part = (program * MODALITIES + m) * size
    tl.store(mixed_parts + part + square, grad_mixed, mask=inside)
    tl.store(out_parts + part + square, grad_out, mask=inside)


def correlation_gradient_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: not the last recursion, which has one term less."""
    names = ("mixed_parts", "out_parts", "correlation", "above", "grad_mixed", "grad_out", "grad_scores")
    arguments = dict.fromkeys(names, "*fp32") | {"w_attend": "*x", "parts": "i32", "scale": "fp32", "FIRST": False}
    return [arguments | constants for constants in triton_wide.served(dtype, width, narrowest=16)]


@kernel(correlation_gradient_specimens, SMALL, ["MODALITIES", "WIDTH"])
def rca_correlation_gradient_kernel(
    mixed_parts, out_parts, w_attend, correlation, above, grad_mixed, grad_out, grad_scores, parts, scale,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Sum the parts of the gradients of B_m (kept transposed) and V_m, and from them the gradient of A_m.

    A program for each modality and ROWS columns of B_m. The gradient of V_m is added to that of the recursions
    ``above``, but for the FIRST that backward meets.
    """
    tiles: tl.constexpr = (WIDTH + ROWS - 1) // ROWS
    m = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    row_inside = rows < WIDTH
    place = tl.arange(0, TILE)
    size: tl.constexpr = WIDTH * WIDTH
    for start in tl.range(0, WIDTH, TILE):
        columns = start + place
        inside = row_inside[:, None] & (columns < WIDTH)[None, :]
        offsets = m * size + rows[:, None] * WIDTH + columns[None, :]
        mixer = sum_of_parts(mixed_parts, MODALITIES * size, parts, offsets, inside, 8)
        tl.store(grad_mixed + offsets, mixer, mask=inside)
        out = sum_of_parts(out_parts, MODALITIES * size, parts, offsets, inside, 8)
        if not FIRST:
            out += tl.load(above + offsets, mask=inside, other=0.0)
        tl.store(grad_out + offsets, out, mask=inside)
    tl.debug_barrier()
    for start in tl.range(0, WIDTH, TILE):
        columns = start + place
        crossed = product(
            grad_mixed + m * size, rows * WIDTH, 1, w_attend + m * size, WIDTH, columns, row_inside, columns < WIDTH,
            WIDTH, tl.zeros((ROWS, TILE), tl.float32), tl.float32, WIDTH, PRECISION, BYTES,
        )  # fmt: skip
        inside = row_inside[:, None] & (columns < WIDTH)[None, :]
        transposed = m * size + columns[None, :] * WIDTH + rows[:, None]
        cosine = tl.load(correlation + transposed, mask=inside, other=0.0)
        tl.store(grad_scores + transposed, crossed * ((1.0 - cosine) * (1.0 + cosine)) * scale, mask=inside)


def moments_gradient_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: not the last recursion, which has three terms less."""
    inputs = ("gram", "sums", "correlation", "grad_mixed", "grad_scores")
    outputs = ("above_joint", "above_bias", "above_attend", "grad_joint", "grad_bias", "grad_attend", "mixing", "shift")
    arguments = dict.fromkeys(inputs + outputs, "*fp32") | {"w_joint": "*x", "b_joint": "*x", "FIRST": False}
    return [arguments | constants for constants in triton_wide.served(dtype, width, narrowest=16)]


@triton.jit
def store_sum(pointer, above, offsets, inside, value, FIRST: tl.constexpr):
    """Write ``value``, added to what is at the same place of ``above`` but for the FIRST."""
    if not FIRST:
        value += tl.load(above + offsets, mask=inside, other=0.0)
    tl.store(pointer + offsets, value, mask=inside)


@kernel(moments_gradient_specimens, SMALL, ["MODALITIES", "WIDTH"])
def rca_moments_gradient_kernel(
    gram, sums, correlation, grad_mixed, grad_scores, w_joint, b_joint, above_joint, above_bias, above_attend,
    grad_joint, grad_bias, grad_attend, mixing, shift,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """From the gradient of A: S = dA W_E^T + W_E dA^T and dA b_E, by which X enters its own gradient, and the gradients
    of the weights, added to those of the recursions ``above``.

    A program for each modality and ROWS rows of its width, and for TILE columns of S between it and another. Those
    of modality zero's columns also have TILE columns of the weights' gradients.
    """
    tiles: tl.constexpr = (WIDTH + ROWS - 1) // ROWS
    across: tl.constexpr = (WIDTH + TILE - 1) // TILE
    m = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    other = tl.program_id(1) // across
    tile = tl.program_id(1) % across
    columns = tile * TILE + tl.arange(0, TILE)
    row_inside = rows < WIDTH
    column_inside = columns < WIDTH
    size: tl.constexpr = WIDTH * WIDTH
    total: tl.constexpr = MODALITIES * WIDTH
    inside = row_inside[:, None] & column_inside[None, :]
    nothing = tl.zeros((ROWS, TILE), tl.float32)
    mixed = product(
        grad_scores + m * size, rows * WIDTH, 1, w_joint + other * size, 1, columns * WIDTH, row_inside, column_inside,
        WIDTH, nothing, tl.float32, WIDTH, PRECISION, BYTES,
    )  # fmt: skip
    mixed = product(
        w_joint + m * size, rows * WIDTH, 1, grad_scores + other * size, 1, columns * WIDTH, row_inside, column_inside,
        WIDTH, mixed, tl.float32, WIDTH, PRECISION, BYTES,
    )  # fmt: skip
    tl.store(mixing + (m * WIDTH + rows[:, None]) * total + other * WIDTH + columns[None, :], mixed, mask=inside)
    if other == 0:
        offsets = m * size + rows[:, None] * WIDTH + columns[None, :]
        joint = product(
            gram + m * WIDTH * total, rows * total, 1, grad_scores, WIDTH, columns, row_inside, column_inside, total,
            nothing, tl.float32, WIDTH, PRECISION, BYTES,
        )  # fmt: skip
        store_sum(grad_joint, above_joint, offsets, inside, joint, FIRST)
        attend = product(
            grad_mixed + m * size, rows, WIDTH, correlation + m * size, 1, columns * WIDTH, row_inside, column_inside,
            WIDTH, nothing, tl.float32, WIDTH, PRECISION, BYTES,
        )  # fmt: skip
        store_sum(grad_attend, above_attend, offsets, inside, attend, FIRST)
    if tl.program_id(1) == 0:
        pull = tl.zeros((ROWS,), tl.float32)
        for start in tl.range(0, WIDTH, TILE):
            inner = start + tl.arange(0, TILE)
            bias = tl.load(b_joint + inner, mask=inner < WIDTH, other=0.0).to(tl.float32)
            wide = row_inside[:, None] & (inner < WIDTH)[None, :]
            scores = tl.load(grad_scores + m * size + rows[:, None] * WIDTH + inner[None, :], mask=wide, other=0.0)
            pull += tl.sum(scores * bias[None, :], 1)
        tl.store(shift + m * WIDTH + rows, pull, mask=row_inside)
    if (tl.program_id(0) == 0) & (other == 0):
        pulled = tl.zeros((TILE,), tl.float32)
        for start in tl.range(0, total, ROWS):
            inner = start + tl.arange(0, ROWS)
            column_sums = tl.load(sums + inner, mask=inner < total, other=0.0)
            wide = (inner < total)[:, None] & column_inside[None, :]
            scores = tl.load(grad_scores + inner[:, None] * WIDTH + columns[None, :], mask=wide, other=0.0)
            pulled += tl.sum(scores * column_sums[:, None], 0)
        store_sum(grad_bias, above_bias, columns, column_inside, pulled, FIRST)


def row_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = dict.fromkeys(("x", "grad", "mixed", "w_out", "result"), "*x")
    arguments |= {"mixing": "*fp32", "shift": "*fp32", "n": "i32", "chunk": "i32"}
    return [arguments | constants for constants in served(dtype, width)]


@kernel(row_specimens, TILES[:1], ["MODALITIES", "WIDTH"])
def rca_row_gradients_kernel(
    x, grad, mixed, w_out, mixing, shift, result, n, chunk,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of X on a chunk of rows, a program for each chunk and modality.

    Bytes: (2 + M) N M d of the features' dtype, as each modality's program reads all of X; for each chunk also B, V, S.
    """
    program = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1)
    columns = tl.arange(0, D)
    size: tl.constexpr = WIDTH * WIDTH
    total: tl.constexpr = MODALITIES * WIDTH
    kind: tl.constexpr = x.dtype.element_ty
    mixer = load_matrix(mixed + m * size, WIDTH, WIDTH, D)
    out = load_matrix(w_out + m * size, WIDTH, WIDTH, D)
    pull = tl.load(shift + m * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    mixers = ()
    for turn in tl.static_range(MODALITIES):
        other = (m + turn) % MODALITIES
        block = load_matrix(mixing + m * size * MODALITIES + other * WIDTH, total, WIDTH, D)
        mixers = mixers + (block.to(kind),)
    for start in tl.range(0, tl.minimum(chunk, n - program * chunk), BLOCK):
        rows = program * chunk + start + tl.arange(0, BLOCK)
        inside = (rows[None, :] < n) & (columns[:, None] < WIDTH)
        offsets = rows[None, :] * total + columns[:, None]
        above = tl.load(grad + offsets + m * WIDTH, mask=inside, other=0.0)
        new = above.to(tl.float32) + pull[:, None]
        for turn in tl.static_range(MODALITIES):
            features = tl.load(x + offsets + (m + turn) % MODALITIES * WIDTH, mask=inside, other=0.0)
            new = tl.dot(mixers[turn], features, new, input_precision=PRECISION)
            if turn == 0:
                attended = tl.dot(tl.trans(mixer), features, input_precision=PRECISION)
                grad_attended = tl.dot(out, above, input_precision=PRECISION)
                grad_attended = tl.where(attended > 0, grad_attended, 0.0).to(kind)
                new = tl.dot(mixer, grad_attended, new, input_precision=PRECISION)
        tl.store(result + offsets + m * WIDTH, new.to(kind), mask=inside)


def chunks(n: int, programs: int) -> tuple[int, int]:
    """Rows of a chunk, and the number of chunks: at most ``programs``, each but the last of SMALLEST_CHUNK or more."""
    return in_chunks(n, programs, SMALLEST_CHUNK)


def _row_tiles(modalities: int, d: int) -> Callable[[dict[str, int]], tuple[int]]:
    """The grid of the kernels of d x d matrices: a program for each modality and ROWS rows of its matrices."""
    return lambda tile: (modalities * triton.cdiv(d, tile["ROWS"]),)


def _square_tiles(modalities: int, d: int) -> Callable[[dict[str, int]], tuple[int, int]]:
    """The grid of a kernel of (M d, M d) matrices: the same, and for each modality and TILE columns."""
    return lambda tile: (
        modalities * triton.cdiv(d, tile["ROWS"]),
        modalities * triton.cdiv(d, tile["TILE"]),
    )


def _gram(x: Tensor, gram_parts: Tensor, sums_parts: Tensor, chunk: int) -> None:
    """Parts of the Gram matrix and column sums of X, one a chunk of rows."""
    wrap_triton(rca_gram_kernel)[(gram_parts.shape[0],)](
        x, gram_parts, sums_parts, x.shape[0], chunk, **constants(x), D=padded(x.shape[2])
    )


def _refine(
    x: Tensor, w_attend: Tensor, correlation: Tensor, w_out: Tensor, mixed: Tensor, result: Tensor, gram_parts: Tensor,
    sums_parts: Tensor, chunk: int, gram: bool,
) -> None:  # fmt: skip
    """One recursion on the rows of X: B_m, the result, and if asked for the parts of its Gram matrix."""
    wrap_triton(rca_pass_kernel)[(gram_parts.shape[0],)](
        x, w_attend, correlation, w_out, mixed, result, gram_parts, sums_parts, x.shape[0], chunk, **constants(x),
        D=padded(x.shape[2]), GRAM=gram,
    )  # fmt: skip


def _weight_gradients(
    x: Tensor, grad: Tensor, mixed: Tensor, w_out: Tensor, mixed_parts: Tensor, out_parts: Tensor, chunk: int
) -> None:
    """Parts of the gradients of B_m (transposed) and V_m, one a chunk of rows."""
    wrap_triton(rca_weight_gradients_kernel)[mixed_parts.shape[:2]](
        x, grad, mixed, w_out, mixed_parts, out_parts, x.shape[0], chunk, **constants(x), D=padded(x.shape[2])
    )


def _row_gradients(
    x: Tensor, grad: Tensor, mixed: Tensor, w_out: Tensor, mixing: Tensor, shift: Tensor, chunk: int, _: None
) -> Tensor:
    """The gradient of X."""
    result = torch.empty_like(x)
    n, modalities, d = x.shape
    wrap_triton(rca_row_gradients_kernel)[(max(1, triton.cdiv(n, chunk)), modalities)](
        x, grad, mixed, w_out, mixing, shift, result, n, chunk, **constants(x), D=padded(d)
    )
    return result


class _Rows(NamedTuple):
    """Who launches the kernels over rows."""

    gram: Callable[..., None]
    refine: Callable[..., None]
    weight_gradients: Callable[..., Any]
    row_gradients: Callable[..., Tensor]


def _rows(x: Tensor) -> _Rows:
    """The kernels over rows that serve ``x``: those that keep all on chip where it fits."""
    if fits(*x.shape[1:]):
        return _Rows(_gram, _refine, _weight_gradients, _row_gradients)
    return _Rows(triton_wide.gram, triton_wide.refine, triton_wide.weight_gradients, triton_wide.row_gradients)


def _forward_fake(
    x: Tensor, w_joint: Tensor, b_joint: Tensor, w_attend: Tensor, w_out: Tensor, recursions: int, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, modalities, d = x.shape
    total = modalities * d
    return (
        torch.empty_like(x),
        x.new_empty(recursions - 1 if keep else 0, n, modalities, d),
        x.new_empty(recursions, total, total, dtype=torch.float32),
        x.new_empty(recursions, total, dtype=torch.float32),
        x.new_empty(recursions, modalities, d, d, dtype=torch.float32),
        x.new_empty(recursions, modalities, d, d),
    )


@operator("rca_forward", _forward_fake)
def rca_forward(
    x: Tensor, w_joint: Tensor, b_joint: Tensor, w_attend: Tensor, w_out: Tensor, recursions: int, scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """X after all recursions; X after each but the last, if they are to be kept; and of each recursion G, X^T 1, C, B.

    All arguments are contiguous and of one dtype.
    """
    n, modalities, d = x.shape
    chunk, programs = chunks(n, FORWARD_PROGRAMS)
    result, kept, gram, sums, correlation, mixed = _forward_fake(
        x, w_joint, b_joint, w_attend, w_out, recursions, scale, keep
    )
    pairs = modalities * (modalities + 1) // 2
    gram_parts = x.new_empty(programs, pairs, d, d, dtype=torch.float32)
    sums_parts = x.new_empty(programs, modalities, d, dtype=torch.float32)
    sizes, rows = constants(x), _rows(x)
    rows.gram(x, gram_parts, sums_parts, chunk)
    spare = [torch.empty_like(x), torch.empty_like(x)] if recursions > 1 and not keep else []
    for r in range(recursions):
        wrap_triton(rca_correlation_kernel)[_row_tiles(modalities, d)](
            gram_parts, sums_parts, w_joint, b_joint, gram[r], sums[r], correlation[r], programs, scale, **sizes
        )
        last = r == recursions - 1
        new = result if last else kept[r] if keep else spare[r % 2]
        rows.refine(x, w_attend, correlation[r], w_out, mixed[r], new, gram_parts, sums_parts, chunk, gram=not last)
        x = new
    return result, kept, gram, sums, correlation, mixed


def _backward_fake(
    grad: Tensor, x: Tensor, kept: Tensor, w_joint: Tensor, b_joint: Tensor, w_attend: Tensor, w_out: Tensor,
    gram: Tensor, sums: Tensor, correlation: Tensor, mixed: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return tuple(torch.empty_like(like) for like in (x, w_joint, b_joint, w_attend, w_out))  # type: ignore[return-value]


@operator("rca_backward", _backward_fake)
def rca_backward(
    grad: Tensor, x: Tensor, kept: Tensor, w_joint: Tensor, b_joint: Tensor, w_attend: Tensor, w_out: Tensor,
    gram: Tensor, sums: Tensor, correlation: Tensor, mixed: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``rca_forward``'s first result with respect to x and the four weights.

    What was not ``kept`` is computed again from x and C: a pass a recursion, without the Gram matrix.
    """
    n, modalities, d = x.shape
    recursions = gram.shape[0]
    sizes, rows = constants(x), _rows(x)
    features = [x, *kept.unbind()] if kept.shape[0] else _again(x, w_attend, w_out, correlation)
    chunk, programs = chunks(n, max(1, FORWARD_PROGRAMS // modalities))
    total = modalities * d
    mixed_parts = x.new_empty(programs, modalities, d, d, dtype=torch.float32)
    out_parts = torch.empty_like(mixed_parts)
    # The weights' gradients so far, and those with one more recursion, in turns: no kernel writes what it reads.
    weights = w_joint, b_joint, w_attend, w_out
    turns = [[torch.empty_like(weight, dtype=torch.float32) for weight in weights] for _ in range(2)]
    grad_mixed, grad_scores = x.new_empty(2, modalities, d, d, dtype=torch.float32).unbind()
    mixing = x.new_empty(total, total, dtype=torch.float32)
    shift = x.new_empty(total, dtype=torch.float32)
    for r in reversed(range(recursions)):
        first = r == recursions - 1
        above, sofar = turns[(r + 1) % 2], turns[r % 2]
        before = features.pop()
        used = rows.weight_gradients(before, grad, mixed[r], w_out, mixed_parts, out_parts, chunk)
        wrap_triton(rca_correlation_gradient_kernel)[_row_tiles(modalities, d)](
            mixed_parts, out_parts, w_attend, correlation[r], above[3], grad_mixed, sofar[3], grad_scores, programs,
            scale, **sizes, FIRST=first,
        )  # fmt: skip
        wrap_triton(rca_moments_gradient_kernel)[_square_tiles(modalities, d)](
            gram[r], sums[r], correlation[r], grad_mixed, grad_scores, w_joint, b_joint, *above[:3], *sofar[:3],
            mixing, shift, **sizes, FIRST=first,
        )  # fmt: skip
        grad = rows.row_gradients(before, grad, mixed[r], w_out, mixing, shift, chunk, used)
    joint, bias, attend, out = (gradient.to(x.dtype) for gradient in turns[0])
    return grad, joint, bias, attend, out


def _again(x: Tensor, w_attend: Tensor, w_out: Tensor, correlation: Tensor) -> list[Tensor]:
    """The features before each recursion, from the first."""
    chunk, programs = chunks(x.shape[0], FORWARD_PROGRAMS)
    no_parts = torch.empty(programs, 0, dtype=torch.float32, device=x.device)
    features = [x]
    for crossed in correlation[:-1].unbind():
        new, mixed = torch.empty_like(x), torch.empty_like(w_attend)
        _rows(x).refine(features[-1], w_attend, crossed, w_out, mixed, new, no_parts, no_parts, chunk, gram=False)
        features.append(new)
    return features


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *weights, _, scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], *weights, *output[2:])
    ctx.scale = scale


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    return *rca_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale), None, None, None


rca_forward.register_autograd(_backward, setup_context=_save)


def refuses(x: Tensor, *_: Any) -> str | None:
    """Why the Triton kernels cannot serve a call on ``x``; ``None`` when they can."""
    modalities, width = x.shape[1:]
    reason = triton_support.refuses("x", x, width)
    if reason is not None:
        return reason
    if modalities > triton_wide.MODALITIES and not fits(modalities, width):
        return f"x has {modalities} modalities of width {width}, more than the {triton_wide.MODALITIES} of wide kernels"
    return None


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
    """The Gram form by Triton kernels; where ``rows`` are wanted, the last recursion is the reference's."""
    weights = w_joint, b_joint, w_attend, w_out
    before = recursions if rows is None else recursions - 1
    if before > 0:
        keep = memory == "fast" and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
        x = rca_forward(*(tensor.contiguous() for tensor in (x, *weights)), before, scale, keep)[0]
    if rows is None:
        return x
    return reference.recursive_cross_modal_attention(x, *weights, min(recursions, 1), scale, rows, memory)
