"""The kernels over rows for widths at which neither the weights nor the Gram matrix fit a program's registers.

Names and formulas as in the narrow kernels' module, ``triton``, whose d x d kernels serve both. Every product here is
made of tiles of BLOCK rows and columns, and a program keeps what it has to read again in memory of its own, a barrier
after it was written: of a chunk of rows, B_m, then relu(U_m) of BLOCK rows at a time, and X_new, whose part of the Gram
matrix it adds last. E is never formed. Nothing is added atomically, so results repeat.

Bytes of a recursion with P and P' programs for a modality, R and R' blocks of BLOCK rows in their chunks and T column
tiles, in elements (those of the sums, C and S are float32)::

    pass              N M d (2 T + 3) + R M 2 d^2, and P M d^2 (2 T + 1) for B
    Gram matrix       N M d (M T + 2) + P (M (M + 1) / 2 d^2 + M d)
    weight gradients  N M d (6 T + 2) + R' M 2 d^2 + P' M 2 d^2
    row gradients     N M d (M T + T + 2) + N / BLOCK (M (M + 1) d^2 + M d)

What a program reads again it has read or written before, at most its chunk ago: these are reads of a cache as far as
the features of all chunks fit it. Beside them, 2 N M d and the sums go through memory in a pass and, as relu(U) and dU
are kept on the way, (7 + M) N M d in backward.

Nothing spills at the widths of the compile matrix. At d = 65 nothing does on CUDA's chips; on gfx942 the pass spills a
few scalar registers in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from crane_kernels.triton_support import WIDEST, config, input_precision, kernel

MODALITIES = 4
BLOCK = 64  # a program's memory of relu(U_m) has as many rows
TILES = [config(8, 3, 255, BLOCK=BLOCK, BYTES=64)]


def served(dtype: torch.dtype, width: int, narrowest: int = 65) -> list[dict[str, Any]]:
    """For the compile matrix: the constants of each kernel, with as many modalities as there may be."""
    precisions = ("ieee", "tf32") if dtype == torch.float32 else ("ieee",)
    sizes = {"MODALITIES": MODALITIES, "WIDTH": width}
    return [sizes | {"PRECISION": precision} for precision in precisions if narrowest <= width <= WIDEST]


@triton.jit
def product(
    left, left_rows, left_stride, right, right_stride, right_columns, rows_inside, columns_inside, depth, total,
    KIND: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A tile of ``total`` + L @ R with an inner dimension of ``depth``, both rounded to KIND as they are loaded.

    L[i, k] is at left + left_rows[i] + k left_stride, R[k, j] at right + k right_stride + right_columns[j]. BYTES of
    each row of L and column of R are multiplied at a time. Rows of the features whose length is no multiple of 4 are
    loaded an element at a time, whose addresses would fill the registers: then fewer of them, and none ahead.
    """
    aligned: tl.constexpr = WIDTH % 4 == 0
    together: tl.constexpr = BYTES * 8 // KIND.primitive_bitwidth if aligned else 16
    for start in tl.range(0, depth, together, num_stages=None if aligned else 1):
        inner = start + tl.arange(0, together)
        rows = tl.load(
            left + left_rows[:, None] + inner[None, :] * left_stride,
            mask=rows_inside[:, None] & (inner < depth)[None, :],
            other=0.0,
        )
        columns = tl.load(
            right + inner[:, None] * right_stride + right_columns[None, :],
            mask=(inner < depth)[:, None] & columns_inside[None, :],
            other=0.0,
        )
        total = tl.dot(rows.to(KIND), columns.to(KIND), total, input_precision=PRECISION)
    return total


@triton.jit
def add_up(
    x, rows, gram, sums,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Write the Gram blocks (pairs, WIDTH, WIDTH) and column sums of ``rows`` rows of X."""
    place = tl.arange(0, BLOCK)
    total: tl.constexpr = MODALITIES * WIDTH
    for first in tl.range(0, total, BLOCK):
        columns = first + place
        column_sums = tl.zeros((BLOCK,), tl.float32)
        for start in tl.range(0, rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            inside = (row < rows)[:, None] & (columns < total)[None, :]
            features = tl.load(x + row[:, None] * total + columns[None, :], mask=inside, other=0.0)
            column_sums += tl.sum(features.to(tl.float32), 0)
        tl.store(sums + columns, column_sums, mask=columns < total)
    for m in tl.range(MODALITIES):
        for other in tl.range(m, MODALITIES):
            for a in tl.range(0, WIDTH, BLOCK):
                for b in tl.range(tl.where(m == other, a, 0), WIDTH, BLOCK):
                    block = tl.zeros((BLOCK, BLOCK), tl.float32)
                    block = product(
                        x + m * WIDTH, a + place, total, x + other * WIDTH, total, b + place,
                        a + place < WIDTH, b + place < WIDTH, rows, block, x.dtype.element_ty, WIDTH, PRECISION, BYTES,
                    )  # fmt: skip
                    inside = (a + place < WIDTH)[:, None] & (b + place < WIDTH)[None, :]
                    tl.store(gram + (a + place)[:, None] * WIDTH + (b + place)[None, :], block, mask=inside)
                    if (m == other) & (a != b):
                        tl.store(gram + (b + place)[None, :] * WIDTH + (a + place)[:, None], block, mask=inside)
            gram += WIDTH * WIDTH


def gram_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = {"x": "*x", "gram_parts": "*fp32", "sums_parts": "*fp32", "n": "i32", "chunk": "i32"}
    return [arguments | constants for constants in served(dtype, width)]


@kernel(gram_specimens, TILES, ["MODALITIES", "WIDTH"])
def rca_wide_gram_kernel(
    x, gram_parts, sums_parts, n, chunk,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A chunk's part of the Gram matrix and column sums of X."""
    program = tl.program_id(0).to(tl.int64)
    pairs: tl.constexpr = MODALITIES * (MODALITIES + 1) // 2
    total: tl.constexpr = MODALITIES * WIDTH
    rows = tl.minimum(chunk, n - tl.program_id(0) * chunk)
    gram = gram_parts + program * (pairs * WIDTH * WIDTH)
    sums = sums_parts + program * total
    add_up(x + program * chunk * total, rows, gram, sums, MODALITIES, WIDTH, PRECISION, BLOCK, BYTES)


def pass_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: the passes with and without the Gram matrix."""
    return [
        dict.fromkeys(("x", "w_attend", "w_out", "mixed", "result", "mixers", "hidden"), "*x")
        | dict.fromkeys(("correlation", "gram_parts", "sums_parts"), "*fp32")
        | {"n": "i32", "chunk": "i32", "GRAM": gram}
        | constants
        for constants in served(dtype, width)
        for gram in (True, False)
    ]


@kernel(pass_specimens, TILES, ["MODALITIES", "WIDTH", "GRAM"])
def rca_wide_pass_kernel(
    x, w_attend, correlation, w_out, mixed, result, mixers, hidden, gram_parts, sums_parts, n, chunk,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, GRAM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """One recursion on a chunk of rows, and this chunk's part of the Gram matrix and column sums of its result.

    A program's own memory: mixers (programs, WIDTH, WIDTH), hidden (programs, BLOCK, WIDTH). The first program stores
    B_m for backward.
    """
    program = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    size: tl.constexpr = WIDTH * WIDTH
    total: tl.constexpr = MODALITIES * WIDTH
    pairs: tl.constexpr = MODALITIES * (MODALITIES + 1) // 2
    kind: tl.constexpr = x.dtype.element_ty
    rows = tl.minimum(chunk, n - tl.program_id(0) * chunk)
    x += program * chunk * total
    result += program * chunk * total
    mixers += program * size
    hidden += program * (BLOCK * WIDTH)
    for m in tl.range(MODALITIES):
        for a in tl.range(0, WIDTH, BLOCK):
            for b in tl.range(0, WIDTH, BLOCK):
                mixer = tl.zeros((BLOCK, BLOCK), tl.float32)
                mixer = product(
                    w_attend + m * size, (a + place) * WIDTH, 1, correlation + m * size, WIDTH, b + place,
                    a + place < WIDTH, b + place < WIDTH, WIDTH, mixer, kind, WIDTH, PRECISION, BYTES,
                ).to(kind)  # fmt: skip
                inside = (a + place < WIDTH)[:, None] & (b + place < WIDTH)[None, :]
                square = (a + place)[:, None] * WIDTH + (b + place)[None, :]
                tl.store(mixers + square, mixer, mask=inside)
                if program == 0:
                    tl.store(mixed + m * size + square, mixer, mask=inside)
        tl.debug_barrier()
        for start in tl.range(0, rows, BLOCK):
            row = (start + place) * total + m * WIDTH
            row_inside = start + place < rows
            for b in tl.range(0, WIDTH, BLOCK):
                columns = b + place
                attended = tl.zeros((BLOCK, BLOCK), tl.float32)
                attended = product(
                    x, row, 1, mixers, WIDTH, columns, row_inside, columns < WIDTH, WIDTH, attended, kind, WIDTH,
                    PRECISION, BYTES,
                )  # fmt: skip
                inside = row_inside[:, None] & (columns < WIDTH)[None, :]
                attended = tl.maximum(attended, 0.0).to(kind)
                tl.store(hidden + place[:, None] * WIDTH + columns[None, :], attended, mask=inside)
            tl.debug_barrier()
            for b in tl.range(0, WIDTH, BLOCK):
                columns = b + place
                inside = row_inside[:, None] & (columns < WIDTH)[None, :]
                offsets = row[:, None] + columns[None, :]
                new = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
                new = product(
                    hidden, place * WIDTH, 1, w_out + m * size, WIDTH, columns, row_inside, columns < WIDTH, WIDTH, new,
                    kind, WIDTH, PRECISION, BYTES,
                )  # fmt: skip
                tl.store(result + offsets, new.to(kind), mask=inside)
            tl.debug_barrier()
    if GRAM:
        gram = gram_parts + program * (pairs * size)
        sums = sums_parts + program * total
        add_up(result, rows, gram, sums, MODALITIES, WIDTH, PRECISION, BLOCK, BYTES)


def weight_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = dict.fromkeys(("x", "grad", "mixed", "w_out", "hidden", "grad_attended"), "*x")
    arguments |= {"mixed_parts": "*fp32", "out_parts": "*fp32", "n": "i32", "chunk": "i32"}
    return [arguments | constants for constants in served(dtype, width)]


@kernel(weight_specimens, TILES, ["MODALITIES", "WIDTH"])
def rca_wide_weight_gradients_kernel(
    x, grad, mixed, w_out, hidden, grad_attended, mixed_parts, out_parts, n, chunk,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A chunk's part of the gradients of B_m (transposed) and V_m, a program for each chunk and modality.

    On the way to them, relu(U_m) and dU_m are stored, (n, MODALITIES, WIDTH).
    """
    program = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1)
    place = tl.arange(0, BLOCK)
    size: tl.constexpr = WIDTH * WIDTH
    total: tl.constexpr = MODALITIES * WIDTH
    kind: tl.constexpr = x.dtype.element_ty
    rows = tl.minimum(chunk, n - tl.program_id(0) * chunk)
    first = program * chunk * total + m * WIDTH
    x += first
    grad += first
    hidden += first
    grad_attended += first
    for start in tl.range(0, rows, BLOCK):
        row = (start + place) * total
        row_inside = start + place < rows
        for b in tl.range(0, WIDTH, BLOCK):
            columns = b + place
            inside = row_inside[:, None] & (columns < WIDTH)[None, :]
            offsets = row[:, None] + columns[None, :]
            attended = tl.zeros((BLOCK, BLOCK), tl.float32)
            attended = product(
                x, row, 1, mixed + m * size, WIDTH, columns, row_inside, columns < WIDTH, WIDTH, attended, kind,
                WIDTH, PRECISION, BYTES,
            )  # fmt: skip
            tl.store(hidden + offsets, tl.maximum(attended, 0.0).to(kind), mask=inside)
            above = tl.zeros((BLOCK, BLOCK), tl.float32)
            above = product(
                grad, row, 1, w_out + m * size, 1, columns * WIDTH, row_inside, columns < WIDTH, WIDTH, above, kind,
                WIDTH, PRECISION, BYTES,
            )  # fmt: skip
            tl.store(grad_attended + offsets, tl.where(attended > 0, above, 0.0).to(kind), mask=inside)
    tl.debug_barrier()
    mixed_parts += (program * MODALITIES + m) * size
    out_parts += (program * MODALITIES + m) * size
    for a in tl.range(0, WIDTH, BLOCK):
        for b in tl.range(0, WIDTH, BLOCK):
            inside = (a + place < WIDTH)[:, None] & (b + place < WIDTH)[None, :]
            square = (a + place)[:, None] * WIDTH + (b + place)[None, :]
            block = tl.zeros((BLOCK, BLOCK), tl.float32)
            grad_mixed = product(
                grad_attended, a + place, total, x, total, b + place, a + place < WIDTH, b + place < WIDTH, rows, block,
                kind, WIDTH, PRECISION, BYTES,
            )  # fmt: skip
            tl.store(mixed_parts + square, grad_mixed, mask=inside)
            grad_out = product(
                hidden, a + place, total, grad, total, b + place, a + place < WIDTH, b + place < WIDTH, rows, block,
                kind, WIDTH, PRECISION, BYTES,
            )  # fmt: skip
            tl.store(out_parts + square, grad_out, mask=inside)


def row_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = dict.fromkeys(("x", "grad", "grad_attended", "mixed", "result"), "*x")
    arguments |= {"mixing": "*fp32", "shift": "*fp32", "n": "i32"}
    return [arguments | constants for constants in served(dtype, width)]


@kernel(row_specimens, TILES, ["MODALITIES", "WIDTH"])
def rca_wide_row_gradients_kernel(
    x, grad, grad_attended, mixed, mixing, shift, result, n,
    MODALITIES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """The gradient of X, a program for each BLOCK rows, modality and BLOCK columns of it."""
    place = tl.arange(0, BLOCK)
    tiles: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    m = tl.program_id(1) // tiles
    columns = tl.program_id(1) % tiles * BLOCK + place
    total: tl.constexpr = MODALITIES * WIDTH
    kind: tl.constexpr = x.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * BLOCK
    row_inside = first + place < n
    row = place * total
    x += first * total
    offsets = first * total + m * WIDTH + row[:, None] + columns[None, :]
    inside = row_inside[:, None] & (columns < WIDTH)[None, :]
    new = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
    new += tl.load(shift + m * WIDTH + columns, mask=columns < WIDTH, other=0.0)[None, :]
    new = product(
        grad_attended + first * total + m * WIDTH, row, 1, mixed + m * WIDTH * WIDTH, 1, columns * WIDTH, row_inside,
        columns < WIDTH, WIDTH, new, kind, WIDTH, PRECISION, BYTES,
    )  # fmt: skip
    new = product(
        x, row, 1, mixing + m * WIDTH, total, columns, row_inside, columns < WIDTH, total, new, kind, WIDTH, PRECISION,
        BYTES,
    )  # fmt: skip
    tl.store(result + offsets, new.to(kind), mask=inside)


def constants(x: Tensor) -> dict[str, Any]:
    """The sizes and the precision, which kernels are compiled for."""
    return {"MODALITIES": x.shape[1], "WIDTH": x.shape[2], "PRECISION": input_precision(torch.float32)}


def gram(x: Tensor, gram_parts: Tensor, sums_parts: Tensor, chunk: int) -> None:
    """Parts of the Gram matrix and column sums of X, one a chunk of rows."""
    wrap_triton(rca_wide_gram_kernel)[(gram_parts.shape[0],)](
        x, gram_parts, sums_parts, x.shape[0], chunk, **constants(x)
    )


def refine(
    x: Tensor, w_attend: Tensor, correlation: Tensor, w_out: Tensor, mixed: Tensor, result: Tensor, gram_parts: Tensor,
    sums_parts: Tensor, chunk: int, gram: bool,
) -> None:  # fmt: skip
    """One recursion on the rows of X: B_m, the result, and if asked for the parts of its Gram matrix."""
    programs, d = gram_parts.shape[0], x.shape[2]
    mixers, hidden = x.new_empty(programs, d, d), x.new_empty(programs, BLOCK, d)
    wrap_triton(rca_wide_pass_kernel)[(programs,)](
        x, w_attend, correlation, w_out, mixed, result, mixers, hidden, gram_parts, sums_parts, x.shape[0], chunk,
        **constants(x), GRAM=gram,
    )  # fmt: skip


def weight_gradients(
    x: Tensor, grad: Tensor, mixed: Tensor, w_out: Tensor, mixed_parts: Tensor, out_parts: Tensor, chunk: int
) -> Tensor:
    """Parts of the gradients of B_m (transposed) and V_m, one a chunk of rows. Returns dU."""
    hidden, grad_attended = torch.empty_like(x), torch.empty_like(x)
    wrap_triton(rca_wide_weight_gradients_kernel)[mixed_parts.shape[:2]](
        x, grad, mixed, w_out, hidden, grad_attended, mixed_parts, out_parts, x.shape[0], chunk, **constants(x)
    )
    return grad_attended


def row_gradients(
    x: Tensor, grad: Tensor, mixed: Tensor, _: Tensor, mixing: Tensor, shift: Tensor, _chunk: int, grad_attended: Tensor
) -> Tensor:
    """The gradient of X."""
    result = torch.empty_like(x)
    n, modalities, d = x.shape
    grid = max(1, triton.cdiv(n, BLOCK)), modalities * triton.cdiv(d, BLOCK)
    wrap_triton(rca_wide_row_gradients_kernel)[grid](
        x, grad, grad_attended, mixed, mixing, shift, result, n, **constants(x)
    )
    return result
