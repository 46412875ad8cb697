"""``modality_attention`` by Triton kernels. Per row, with tokens x_m, projections q_m, k_m, v_m and shares p_mk of the
softmax over k, and with g for the result's gradient::

    w_k  = mean_m p_mk        context = sum_k w_k v_k        result = W_o context + b_o
    dc   = W_o^T g            dp_k    = (dc . v_k) / M       ds_mk  = p_mk (dp_k - sum_j p_mj dp_j) / sqrt(head width)
    dq_m = sum_k ds_mk k_k    dk_k    = sum_m ds_mk q_m      dv_k   = w_k dc

Where the weights fit a program's registers (:func:`fits`), the forward is one pass over the rows, from tokens to result
on chip, by programs that each take a chunk of them. Its tiles of rows are transposed, (width, rows): the weights are
then the left operand of each product, which the warps of a program share out among themselves. Products go by slices
of 16 of what they sum over, with barriers between them, as a compiler that may load the operands of all products first
runs out of registers. Bytes moved for N rows of M tokens of width d, with e bytes an element and P programs::

    loads   e N d M + e P (4 d^2 + 3 d)    tokens once; weights and biases, but the keys' bias, once a program
    stores  e N d

P is at most PROGRAMS and, beyond FEWEST_PROGRAMS, no more than keep these bytes within 1.1 of the tokens' and the
result's: with float32, M = 2 and d = 64 they are 1.04 at N = 255,404, 1.10 at N = 63,001 and 1.21 at N = 26,495, where
fewer programs would move less and leave more of the device idle.

In half precision, for one or two tokens (:func:`in_passes`), backward is three passes, which compute the projections
again: for the tokens' gradient, for those of W_q and W_k, and for those of W_v and W_o, of which each program leaves
its part in float32, for PyTorch to sum. P is at most BACKWARD_PROGRAMS here, as what takes long is to compute, not to
move (by count of instructions; no GPU has timed it)::

    tokens     loads  e N d (M + 1) + e P (7 d^2 + 2 d)    stores  e N d M
    W_q, W_k   loads  e N d (M + 1) + e P (4 d^2 + 2 d)    stores  4 P (2 d^2 + 2 d)
    W_v, W_o   loads  e N d (M + 1) + e P (4 d^2 + 2 d)    stores  4 P (2 d^2 + 2 d)
    sums       loads  4 P (4 d^2 + 4 d)

Elsewhere PyTorch multiplies by the weights, and a kernel does what is between the products::

    forward    loads  e N d 3 M            stores  e N d              projections to context
    backward   loads  e N d (3 M + 1)      stores  e N d (3 M + 1)    projections and dc to their gradients and context

Heads are padded to widths and numbers that are powers of two. Only the inputs are saved for backward, and nothing is
added atomically: results repeat.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from crane_kernels import triton_support
from crane_kernels.modality_attention import cpp
from crane_kernels.triton_support import config, in_chunks, input_precision, kernel, operator, padded

PROGRAMS = 120  # about one a multiprocessor of the larger chips
FEWEST_PROGRAMS = 64
BACKWARD_PROGRAMS = 2 * PROGRAMS  # as their registers allow a multiprocessor: one waits while another multiplies
SMALLEST_CHUNK = 64
MOST_TOKENS = 4
SLICE = tl.constexpr(16)  # columns of a product at a time
WIDEST = 64
TILE = 1024  # elements of a tile of the kernels between the products


@triton.jit
def head_features(HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, place, E: tl.constexpr):
    """The features at places of the heads, each padded to E of them, and which places hold one."""
    head, column = place // E, place % E
    return head * HEAD_WIDTH + column, (head < HEADS) & (column < HEAD_WIDTH)


@triton.jit
def by_columns(
    weight, feature_stride, column_stride, WIDTH: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """A matrix of the heads' features and columns: a tuple of SLICE columns each, (C, SLICE), padded with zeros."""
    features, present = head_features(HEADS, WIDTH // HEADS, tl.arange(0, C), E)
    result = ()
    for start in tl.static_range(0, D, SLICE):
        columns = start + tl.arange(0, SLICE)
        places = features[:, None] * feature_stride + columns[None, :] * column_stride
        inside = present[:, None] & (columns[None, :] < WIDTH)
        result = result + (tl.load(weight + places, mask=inside, other=0.0),)
    return result


@triton.jit
def by_features(
    weight, feature_stride, column_stride, WIDTH: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """A matrix of columns and the heads' features: a tuple of SLICE features each, (D, SLICE), padded with zeros."""
    columns = tl.arange(0, D)
    result = ()
    for start in tl.static_range(0, C, SLICE):
        features, present = head_features(HEADS, WIDTH // HEADS, start + tl.arange(0, SLICE), E)
        places = columns[:, None] * column_stride + features[None, :] * feature_stride
        inside = (columns[:, None] < WIDTH) & present[None, :]
        result = result + (tl.load(weight + places, mask=inside, other=0.0),)
    return result


@triton.jit
def load_projections(
    in_weight, WIDTH: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, E: tl.constexpr, D: tl.constexpr
):
    """The slices of W_q, then those of W_k and of W_v."""
    size: tl.constexpr = WIDTH * WIDTH
    queries = by_columns(in_weight, WIDTH, 1, WIDTH, HEADS, C, E, D)
    keys = by_columns(in_weight + size, WIDTH, 1, WIDTH, HEADS, C, E, D)
    return queries + keys + by_columns(in_weight + 2 * size, WIDTH, 1, WIDTH, HEADS, C, E, D)


@triton.jit
def load_biases(in_bias, features, present, WIDTH: tl.constexpr, BIASED: tl.constexpr, C: tl.constexpr):
    """b_q and b_v, (C,) each: the keys' would move all scores of a query alike."""
    of_queries = tl.zeros((C,), tl.float32)
    of_values = tl.zeros((C,), tl.float32)
    if BIASED:
        of_queries += tl.load(in_bias + features, mask=present, other=0.0)
        of_values += tl.load(in_bias + 2 * WIDTH + features, mask=present, other=0.0)
    return of_queries, of_values


@triton.jit
def load_rows(pointer, stride, rows, n, WIDTH: tl.constexpr, D: tl.constexpr):
    """WIDTH features of rows that lie ``stride`` apart: a tuple of SLICE features each, (SLICE, BLOCK)."""
    result = ()
    for start in tl.static_range(0, D, SLICE):
        columns = start + tl.arange(0, SLICE)
        inside = (rows[None, :] < n) & (columns[:, None] < WIDTH)
        result = result + (tl.load(pointer + rows[None, :] * stride + columns[:, None], mask=inside, other=0.0),)
    return result


@triton.jit
def load_tokens(tokens, rows, n, TOKENS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """The tokens of rows, in slices: those of the first token, then those of the second, and so on."""
    result = ()
    for m in tl.static_range(TOKENS):
        result = result + load_rows(tokens + m * WIDTH, TOKENS * WIDTH, rows, n, WIDTH, D)
    return result


@triton.jit
def repeated(tile, COUNT: tl.constexpr):
    """A tuple of COUNT times the tile."""
    result = ()
    for _ in tl.static_range(COUNT):
        result = result + (tile,)
    return result


@triton.jit
def projections(
    x, weights, biases, TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The queries, keys and values of tokens in slices: tuples of (C, BLOCK)."""
    queries = repeated(tl.zeros((C, BLOCK), tl.float32) + biases[0][:, None], TOKENS)
    keys = repeated(tl.zeros((C, BLOCK), tl.float32), TOKENS)
    values = repeated(tl.zeros((C, BLOCK), tl.float32) + biases[1][:, None], TOKENS)
    slices: tl.constexpr = D // SLICE
    for place in tl.static_range(slices):
        tl.debug_barrier()  # or the compiler would load what later slices need too, for which there are no registers
        new_queries = ()
        new_keys = ()
        new_values = ()
        for m in tl.static_range(TOKENS):
            tile = x[m * slices + place]
            new_queries = new_queries + (tl.dot(weights[place], tile, queries[m], input_precision=PRECISION),)
            new_keys = new_keys + (tl.dot(weights[slices + place], tile, keys[m], input_precision=PRECISION),)
            new_values = new_values + (tl.dot(weights[2 * slices + place], tile, values[m], input_precision=PRECISION),)
        queries = new_queries
        keys = new_keys
        values = new_values
    return queries, keys, values


@triton.jit
def rows_apart(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The four (ROWS, COLUMNS) that lie below each other."""
    upper, lower = tl.split(tl.permute(tl.reshape(values, (2, 2, ROWS, COLUMNS)), (2, 3, 1, 0)))
    first, second = tl.split(upper)
    third, fourth = tl.split(lower)
    return first, second, third, fourth


@triton.jit
def add_product(weights, tile, total, C: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """``total`` and the product of the weights, in slices, and of a (C, BLOCK) tile."""
    if C == SLICE:
        total = tl.dot(weights[0], tile, total, input_precision=PRECISION)
    elif C == 2 * SLICE:
        upper, lower = tl.split(tl.permute(tl.reshape(tile, (2, SLICE, BLOCK)), (1, 2, 0)))
        total = tl.dot(weights[0], upper, total, input_precision=PRECISION)
        total = tl.dot(weights[1], lower, total, input_precision=PRECISION)
    else:
        parts = rows_apart(tile, SLICE, BLOCK)
        for place in tl.static_range(4):
            total = tl.dot(weights[place], parts[place], total, input_precision=PRECISION)
    return total


@triton.jit
def sums_of_heads(values, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """(C, BLOCK) summed over the places of each head: (C / E, BLOCK)."""
    return tl.sum(tl.reshape(values, (C // E, E, BLOCK)), 1)


@triton.jit
def to_features(values, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """A number for each head, given to all its places: (C / E, BLOCK) to (C, BLOCK)."""
    return tl.reshape(tl.broadcast_to(values[:, None, :], (C // E, E, BLOCK)), (C, BLOCK))


@triton.jit
def products(query, keys, TOKENS: tl.constexpr, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """The products of a query and each key, summed by head: a tuple of (C / E, BLOCK)."""
    result = ()
    for k in tl.static_range(TOKENS):
        result = result + (sums_of_heads(query * keys[k], C, E, BLOCK),)
    return result


@triton.jit
def softmax(query, keys, TOKENS: tl.constexpr, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """The shares of each key for a query, by head: a tuple of (C / E, BLOCK)."""
    scores = products(query, keys, TOKENS, C, E, BLOCK)
    largest = scores[0]
    for k in tl.static_range(1, TOKENS):
        largest = tl.maximum(largest, scores[k])
    total = tl.zeros_like(largest)
    for k in tl.static_range(TOKENS):
        total += tl.exp(scores[k] - largest)
    shares = ()
    for k in tl.static_range(TOKENS):
        shares = shares + (tl.exp(scores[k] - largest) / total,)
    return shares


@triton.jit
def added(first, second, COUNT: tl.constexpr):
    """The sums of two tuples' elements."""
    result = ()
    for place in tl.static_range(COUNT):
        result = result + (first[place] + second[place],)
    return result


@triton.jit
def mixed_values(shares, values, TOKENS: tl.constexpr, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """The values, summed by the shares of their tokens: (C, BLOCK)."""
    result = tl.zeros((C, BLOCK), tl.float32)
    for k in tl.static_range(TOKENS):
        result += to_features(shares[k], C, E, BLOCK) * values[k]
    return result


@triton.jit
def gradients_of_tile(
    queries, keys, values, above, scale, TOKENS: tl.constexpr, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr
):
    """From the projections of the rows' tokens and dc / M, (C, BLOCK) each: their gradients, and the context."""
    pulls = products(above, values, TOKENS, C, E, BLOCK)
    shares = repeated(tl.zeros((C // E, BLOCK), tl.float32), TOKENS)
    grad_queries = ()
    grad_keys = repeated(tl.zeros((C, BLOCK), tl.float32), TOKENS)
    grad_values = ()
    for m in tl.static_range(TOKENS):
        own = softmax(queries[m] * scale, keys, TOKENS, C, E, BLOCK)
        shares = added(shares, own, TOKENS)
        mean = tl.zeros((C // E, BLOCK), tl.float32)
        for k in tl.static_range(TOKENS):
            mean += own[k] * pulls[k]
        grad_query = tl.zeros((C, BLOCK), tl.float32)
        of_keys = ()
        for k in tl.static_range(TOKENS):
            grad_score = to_features(own[k] * (pulls[k] - mean) * scale, C, E, BLOCK)
            grad_query += grad_score * keys[k]
            of_keys = of_keys + (grad_score * queries[m],)
        grad_keys = added(grad_keys, of_keys, TOKENS)
        grad_queries = grad_queries + (grad_query,)
    for k in tl.static_range(TOKENS):
        grad_values = grad_values + (to_features(shares[k], C, E, BLOCK) * above,)
    return grad_queries, grad_keys, grad_values, mixed_values(shares, values, TOKENS, C, E, BLOCK) / TOKENS


def padded_heads(width: int, heads: int) -> tuple[int, int]:
    """Places for all heads, and for each: powers of two."""
    place = 1 << (width // heads - 1).bit_length()
    return max(16, place << (heads - 1).bit_length()), place


def fits(dtype: torch.dtype, width: int, tokens: int, heads: int) -> bool:
    """Whether the forward can be one kernel: the weights fit a program's registers beside the tokens' projections.

    Padded tokens, and padded heads together, may be 64 wide; three or four tokens of float32 only 16.
    """
    widest = max(padded(width), padded_heads(width, heads)[0])
    return widest <= (WIDEST if tokens <= 2 or dtype.itemsize < 4 else 16)


def constants(width: int, tokens: int, heads: int, biased: bool, out_biased: bool) -> dict[str, Any]:
    """The compile-time constants of the one kernel of the forward, but the precision: C places, E for each head."""
    places, place = padded_heads(width, heads)
    return {
        "TOKENS": tokens, "WIDTH": width, "HEADS": heads, "BIASED": biased, "OUT_BIASED": out_biased,
        "C": places, "E": place, "D": padded(width),
    }  # fmt: skip


SPECIMENS = ((2, True), (1, False), (4, True), (3, False))  # tokens, and whether there are biases


def heads_of(width: int) -> int:
    """For the compile matrix: four heads where the width is a power of two, else a number whose heads are padded."""
    return math.gcd(width, 60)


def forward_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    arguments = dict.fromkeys(("tokens", "in_weight", "in_bias", "out_weight", "out_bias", "result"), "*x")
    arguments |= {"n": "i32", "chunk": "i32", "scale": "fp32"}
    heads = heads_of(width)
    precisions = ("ieee", "tf32") if dtype == torch.float32 else ("ieee",)
    return [
        arguments | constants(width, tokens, heads, biased, biased) | {"PRECISION": precision}
        for precision in precisions
        for tokens, biased in SPECIMENS
        if fits(dtype, width, tokens, heads)
    ]


KEY = ["TOKENS", "WIDTH", "HEADS"]


@kernel(forward_specimens, [config(4, 1, 255, BLOCK=16)], KEY)
def modality_attention_fwd_kernel(
    tokens, in_weight, in_bias, out_weight, out_bias, result, n, chunk, scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, BIASED: tl.constexpr, OUT_BIASED: tl.constexpr,
    C: tl.constexpr, E: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk of rows: the mean over tokens of their attention, projected."""
    program = tl.program_id(0).to(tl.int64)
    tokens += program * chunk * (TOKENS * WIDTH)
    result += program * chunk * WIDTH
    in_chunk = tl.minimum(n - program * chunk, chunk).to(tl.int32)
    columns = tl.arange(0, D)
    features, present = head_features(HEADS, WIDTH // HEADS, tl.arange(0, C), E)
    weights = load_projections(in_weight, WIDTH, HEADS, C, E, D)
    biases = load_biases(in_bias, features, present, WIDTH, BIASED, C)
    out = by_features(out_weight, 1, WIDTH, WIDTH, HEADS, C, E, D)
    bias = tl.zeros((D,), tl.float32)
    if OUT_BIASED:
        bias += tl.load(out_bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    for start in tl.range(0, in_chunk, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows[None, :] < in_chunk) & (columns[:, None] < WIDTH)
        x = load_tokens(tokens, rows, in_chunk, TOKENS, WIDTH, D)
        queries, keys, values = projections(x, weights, biases, TOKENS, C, D, BLOCK, PRECISION)
        shares = repeated(tl.zeros((C // E, BLOCK), tl.float32), TOKENS)
        for m in tl.static_range(TOKENS):
            shares = added(shares, softmax(queries[m] * scale, keys, TOKENS, C, E, BLOCK), TOKENS)
        context = mixed_values(shares, values, TOKENS, C, E, BLOCK) / TOKENS
        tl.debug_barrier()  # see projections
        projected = tl.zeros((D, BLOCK), tl.float32) + bias[:, None]
        projected = add_product(out, context.to(tokens.dtype.element_ty), projected, C, BLOCK, PRECISION)
        places = rows[None, :] * WIDTH + columns[:, None]
        tl.store(result + places, projected.to(result.dtype.element_ty), mask=inside)


@triton.jit
def add_products(left, right, first, totals, COUNT: tl.constexpr):
    """The totals, and the products of a tile and the transposes of COUNT slices from the ``first`` on."""
    result = ()
    for place in tl.static_range(COUNT):
        turned = tl.trans(right[first + place])
        result = result + (tl.dot(left, turned, totals[place]),)
    return result


@triton.jit
def load_weights(
    in_weight, in_bias, out_weight, WIDTH: tl.constexpr, HEADS: tl.constexpr, BIASED: tl.constexpr, C: tl.constexpr,
    E: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """What :func:`gradients_of_rows` takes: the projections' weights and biases, and the slices of W_o^T."""
    features, present = head_features(HEADS, WIDTH // HEADS, tl.arange(0, C), E)
    biases = load_biases(in_bias, features, present, WIDTH, BIASED, C)
    out = by_columns(out_weight, 1, WIDTH, WIDTH, HEADS, C, E, D)
    return load_projections(in_weight, WIDTH, HEADS, C, E, D), biases, out


@triton.jit
def gradients_of_rows(
    x, above, weights, biases, out, scale, TOKENS: tl.constexpr, C: tl.constexpr, E: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """From tokens and the result's gradient, in slices: the gradients of the projections, and the context."""
    queries, keys, values = projections(x, weights, biases, TOKENS, C, D, BLOCK, "ieee")
    pull = tl.zeros((C, BLOCK), tl.float32)
    for place in tl.static_range(D // SLICE):
        tl.debug_barrier()  # see projections
        pull = tl.dot(out[place], above[place], pull)
    return gradients_of_tile(queries, keys, values, pull / TOKENS, scale, TOKENS, C, E, BLOCK)


def in_passes(dtype: torch.dtype, width: int, tokens: int, heads: int) -> bool:
    """Whether backward is passes over the rows: the weights and their gradients fit a program's registers.

    Not in float32: its products take longer than moving their results does, and a pass computes projections again.
    """
    return dtype.itemsize < 4 and tokens <= 2 and fits(dtype, width, tokens, heads)


def backward_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: what the kernels of the backward's passes take."""
    heads = heads_of(width)
    arguments = dict.fromkeys(("tokens", "grad", "in_weight", "in_bias", "out_weight"), "*x")
    arguments |= {"n": "i32", "chunk": "i32", "scale": "fp32"}
    return [
        arguments | backward_constants(width, tokens, heads, biased)
        for tokens, biased in SPECIMENS[:2]
        if in_passes(dtype, width, tokens, heads)
    ]


def backward_constants(width: int, tokens: int, heads: int, biased: bool) -> dict[str, Any]:
    """The compile-time constants of the kernels of the backward's passes."""
    sizes = constants(width, tokens, heads, biased, False)
    del sizes["OUT_BIASED"]
    return sizes


def row_gradient_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    return [specimen | {"result": "*x"} for specimen in backward_specimens(dtype, width)]


@kernel(row_gradient_specimens, [config(4, 1, 255, BLOCK=16)], KEY)
def modality_attention_row_gradients_kernel(
    tokens, grad, in_weight, in_bias, out_weight, result, n, chunk, scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, BIASED: tl.constexpr,
    C: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk of rows: the gradients of their tokens."""
    program = tl.program_id(0).to(tl.int64)
    tokens += program * chunk * (TOKENS * WIDTH)
    grad += program * chunk * WIDTH
    result += program * chunk * (TOKENS * WIDTH)
    in_chunk = tl.minimum(n - program * chunk, chunk).to(tl.int32)
    kind: tl.constexpr = tokens.dtype.element_ty
    columns = tl.arange(0, D)
    weights, biases, out = load_weights(in_weight, in_bias, out_weight, WIDTH, HEADS, BIASED, C, E, D)
    size: tl.constexpr = WIDTH * WIDTH
    of_query = by_features(in_weight, WIDTH, 1, WIDTH, HEADS, C, E, D)
    of_key = by_features(in_weight + size, WIDTH, 1, WIDTH, HEADS, C, E, D)
    of_value = by_features(in_weight + 2 * size, WIDTH, 1, WIDTH, HEADS, C, E, D)
    for start in tl.range(0, in_chunk, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        x = load_tokens(tokens, rows, in_chunk, TOKENS, WIDTH, D)
        above = load_rows(grad, WIDTH, rows, in_chunk, WIDTH, D)
        grad_queries, grad_keys, grad_values, _ = gradients_of_rows(
            x, above, weights, biases, out, scale, TOKENS, C, E, D, BLOCK
        )
        inside = (rows[None, :] < in_chunk) & (columns[:, None] < WIDTH)
        for m in tl.static_range(TOKENS):
            tl.debug_barrier()  # see projections
            new = tl.zeros((D, BLOCK), tl.float32)
            new = add_product(of_query, grad_queries[m].to(kind), new, C, BLOCK, "ieee")
            new = add_product(of_key, grad_keys[m].to(kind), new, C, BLOCK, "ieee")
            new = add_product(of_value, grad_values[m].to(kind), new, C, BLOCK, "ieee")
            places = (rows[None, :] * TOKENS + m) * WIDTH + columns[:, None]
            tl.store(result + places, new.to(kind), mask=inside)


def weight_gradient_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    return [
        specimen | {"parts": "*fp32", "SCORES": scores}
        for specimen in backward_specimens(dtype, width)
        for scores in (True, False)
    ]


@kernel(weight_gradient_specimens, [config(4, 1, 255, BLOCK=16)], [*KEY, "SCORES"])
def modality_attention_weight_gradients_kernel(
    tokens, grad, in_weight, in_bias, out_weight, parts, n, chunk, scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, BIASED: tl.constexpr, SCORES: tl.constexpr,
    C: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk's part of the gradients of what makes the SCORES, W_q, W_k and b_q, or of W_v, W_o, b_v and b_o.

    A part is 4 d^2 + 4 d numbers: the gradients of in_proj_weight, out_proj_weight and their biases.
    """
    program = tl.program_id(0).to(tl.int64)
    tokens += program * chunk * (TOKENS * WIDTH)
    grad += program * chunk * WIDTH
    size: tl.constexpr = WIDTH * WIDTH
    part = parts + program * (4 * size + 4 * WIDTH)
    in_chunk = tl.minimum(n - program * chunk, chunk).to(tl.int32)
    kind: tl.constexpr = tokens.dtype.element_ty
    slices: tl.constexpr = D // SLICE
    features, present = head_features(HEADS, WIDTH // HEADS, tl.arange(0, C), E)
    weights, biases, out = load_weights(in_weight, in_bias, out_weight, WIDTH, HEADS, BIASED, C, E, D)
    # Of W_q and W_k, or of W_v and W_o.
    of_projection = repeated(tl.zeros((C, SLICE), tl.float32), slices)
    of_other = repeated(tl.zeros((C, SLICE), tl.float32), slices)
    bias = tl.zeros((C, BLOCK), tl.float32)
    out_bias = repeated(tl.zeros((SLICE, BLOCK), tl.float32), slices)
    for start in tl.range(0, in_chunk, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        x = load_tokens(tokens, rows, in_chunk, TOKENS, WIDTH, D)
        above = load_rows(grad, WIDTH, rows, in_chunk, WIDTH, D)
        grad_queries, grad_keys, grad_values, context = gradients_of_rows(
            x, above, weights, biases, out, scale, TOKENS, C, E, D, BLOCK
        )
        for m in tl.static_range(TOKENS):
            tl.debug_barrier()  # see projections
            if SCORES:
                of_projection = add_products(grad_queries[m].to(kind), x, m * slices, of_projection, slices)
                of_other = add_products(grad_keys[m].to(kind), x, m * slices, of_other, slices)
                bias += grad_queries[m]
            else:
                of_projection = add_products(grad_values[m].to(kind), x, m * slices, of_projection, slices)
                bias += grad_values[m]
        if not SCORES:
            of_other = add_products(context.to(kind), above, 0, of_other, slices)
            out_bias = added(out_bias, above, slices)
    of_bias = part + 4 * size
    for place in tl.static_range(slices):
        columns = place * SLICE + tl.arange(0, SLICE)
        inside = present[:, None] & (columns[None, :] < WIDTH)
        straight = features[:, None] * WIDTH + columns[None, :]
        if SCORES:
            tl.store(part + straight, of_projection[place], mask=inside)
            tl.store(part + size + straight, of_other[place], mask=inside)
        else:
            tl.store(part + 2 * size + straight, of_projection[place], mask=inside)
            tl.store(part + 3 * size + columns[None, :] * WIDTH + features[:, None], of_other[place], mask=inside)
            tl.store(of_bias + 3 * WIDTH + columns, tl.sum(out_bias[place], 1), mask=columns < WIDTH)
    if SCORES:
        tl.store(of_bias + features, tl.sum(bias, 1), mask=present)
        tl.store(of_bias + WIDTH + features, tl.zeros((C,), tl.float32), mask=present)  # see load_biases
    else:
        tl.store(of_bias + 2 * WIDTH + features, tl.sum(bias, 1), mask=present)


def between_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: what both kernels between the products take."""
    arguments = dict.fromkeys(("projected", "context"), "*x") | {"n": "i32", "scale": "fp32"}
    return [arguments | between_constants(width, tokens, heads_of(width)) for tokens, _ in SPECIMENS]


def between_constants(width: int, tokens: int, heads: int) -> dict[str, int]:
    """The compile-time constants of the kernels between the products."""
    places, place = padded_heads(width, heads)
    # The places of padded heads are computed an element at a time, which takes registers.
    tile = TILE if places == width else TILE // 2
    return {
        "TOKENS": tokens, "WIDTH": width, "HEADS": heads, "C": places, "E": place, "BLOCK": max(1, tile // places),
    }  # fmt: skip


@triton.jit
def load_projected(
    projected, rows, n, TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr,
    E: tl.constexpr,
):  # fmt: skip
    """The queries, keys and values of the rows' tokens, (C, BLOCK) each; where they are; and which exist."""
    features, present = head_features(HEADS, WIDTH // HEADS, tl.arange(0, C), E)
    inside = present[:, None] & (rows < n)[None, :]
    places = rows[None, :] * (TOKENS * 3 * WIDTH) + features[:, None]
    queries = ()
    keys = ()
    values = ()
    for m in tl.static_range(TOKENS):
        token = projected + places + m * 3 * WIDTH
        queries = queries + (tl.load(token, mask=inside, other=0.0).to(tl.float32),)
        keys = keys + (tl.load(token + WIDTH, mask=inside, other=0.0).to(tl.float32),)
        values = values + (tl.load(token + 2 * WIDTH, mask=inside, other=0.0).to(tl.float32),)
    return queries, keys, values, places, inside


@kernel(between_specimens, [config(4, 1)], KEY)
def modality_attention_context_kernel(
    projected, context, n, scale, TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows: from the projections of their tokens, the mean over tokens of what each attends to."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    queries, keys, values, _, inside = load_projected(projected, rows, n, TOKENS, WIDTH, HEADS, C, E)
    shares = repeated(tl.zeros((C // E, BLOCK), tl.float32), TOKENS)
    for m in tl.static_range(TOKENS):
        shares = added(shares, softmax(queries[m] * scale, keys, TOKENS, C, E, BLOCK), TOKENS)
    mean = mixed_values(shares, values, TOKENS, C, E, BLOCK) / TOKENS
    features, _ = head_features(HEADS, WIDTH // HEADS, tl.arange(0, C), E)
    tl.store(context + rows[None, :] * WIDTH + features[:, None], mean.to(context.dtype.element_ty), mask=inside)


def gradient_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix."""
    more = dict.fromkeys(("grad_context", "grad_projected"), "*x")
    return [specimen | more for specimen in between_specimens(dtype, width)]


@kernel(gradient_specimens, [config(4, 1)], KEY)
def modality_attention_gradient_kernel(
    projected, grad_context, context, grad_projected, n, scale, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows: from the projections and the context's gradient, the context and the projections' gradients."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    queries, keys, values, places, inside = load_projected(projected, rows, n, TOKENS, WIDTH, HEADS, C, E)
    kind: tl.constexpr = projected.dtype.element_ty
    features, _ = head_features(HEADS, WIDTH // HEADS, tl.arange(0, C), E)
    of_row = rows[None, :] * WIDTH + features[:, None]
    above = tl.load(grad_context + of_row, mask=inside, other=0.0).to(tl.float32) / TOKENS
    grad_queries, grad_keys, grad_values, mean_value = gradients_of_tile(
        queries, keys, values, above, scale, TOKENS, C, E, BLOCK
    )
    for m in tl.static_range(TOKENS):
        token = grad_projected + places + m * 3 * WIDTH
        tl.store(token, grad_queries[m].to(kind), mask=inside)
        tl.store(token + WIDTH, grad_keys[m].to(kind), mask=inside)
        tl.store(token + 2 * WIDTH, grad_values[m].to(kind), mask=inside)
    tl.store(context + of_row, mean_value.to(kind), mask=inside)


def chunks(n: int, tokens: int, width: int) -> tuple[int, int]:
    """Rows of a chunk and the number of chunks, which is a program each: see P in the module's docstring.

    Offsets within a chunk have 32 bits: no device holds so many tokens that a program's share of them needs more.
    """
    programs = max(FEWEST_PROGRAMS, min(PROGRAMS, n * (tokens + 1) // (40 * width + 30)))
    return in_chunks(n, programs, SMALLEST_CHUNK)


def _forward_fake(tokens: Tensor, *_: Any) -> Tensor:
    return tokens.new_empty(tokens.shape[0], tokens.shape[2])


@operator("modality_attention_triton", _forward_fake)
def _forward(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
) -> Tensor:
    """Attention over the tokens of each row, then their mean: (N, M, d) -> (N, d)."""
    n, count, width = tokens.shape
    if not fits(tokens.dtype, width, count, num_heads):
        projected = F.linear(tokens, in_proj_weight, in_proj_bias).contiguous()
        context = tokens.new_empty(n, width)
        _between(modality_attention_context_kernel, tokens, num_heads, projected, context)
        return F.linear(context, out_proj_weight, out_proj_bias)
    chunk, programs = chunks(n, count, width)
    result = tokens.new_empty(n, width)
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias
    # An absent bias is any other tensor, which the kernel does not touch.
    dense = [(in_proj_weight if weight is None else weight).contiguous() for weight in weights]
    wrap_triton(modality_attention_fwd_kernel)[(programs,)](
        tokens.contiguous(), *dense, result, n, chunk, (width // num_heads) ** -0.5,
        **constants(width, count, num_heads, in_proj_bias is not None, out_proj_bias is not None),
        PRECISION=input_precision(tokens.dtype),
    )  # fmt: skip
    return result


def _between(kernel_between: Any, tokens: Tensor, num_heads: int, *tensors: Tensor) -> None:
    """Launch a kernel between the products."""
    n, count, width = tokens.shape
    sizes = between_constants(width, count, num_heads)
    programs = max(1, triton.cdiv(n, sizes["BLOCK"]))
    wrap_triton(kernel_between)[(programs,)](*tensors, n, (width // num_heads) ** -0.5, **sizes)


@operator("modality_attention_triton_backward", cpp.fake_backward)
def _gradients(
    grad: Tensor,
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    _out_proj_bias: Tensor | None,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the tokens, weights and biases."""
    _, count, width = tokens.shape
    if in_passes(tokens.dtype, width, count, num_heads):
        return _gradients_in_passes(grad, tokens, in_proj_weight, in_proj_bias, out_proj_weight, num_heads)
    projected = F.linear(tokens, in_proj_weight, in_proj_bias).contiguous()
    grad_context = grad @ out_proj_weight
    context, grad_projected = torch.empty_like(grad_context), torch.empty_like(projected)
    _between(modality_attention_gradient_kernel, tokens, num_heads, projected, grad_context, context, grad_projected)
    of_rows = grad_projected.flatten(0, 1)
    return (
        grad_projected @ in_proj_weight,
        of_rows.T @ tokens.flatten(0, 1),
        of_rows.sum(0),
        grad.T @ context,
        grad.sum(0),
    )


def _gradients_in_passes(
    grad: Tensor,
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients by the kernels that keep the weights and their gradients on chip."""
    n, count, width = tokens.shape
    chunk, programs = in_chunks(n, BACKWARD_PROGRAMS, SMALLEST_CHUNK)
    # An absent bias is any other tensor, which the kernels do not touch.
    bias_or_any = in_proj_weight if in_proj_bias is None else in_proj_bias
    dense = [tensor.contiguous() for tensor in (tokens, grad, in_proj_weight, bias_or_any, out_proj_weight)]
    sizes = backward_constants(width, count, num_heads, in_proj_bias is not None)
    scale = (width // num_heads) ** -0.5
    of_tokens = torch.empty_like(dense[0])
    wrap_triton(modality_attention_row_gradients_kernel)[(programs,)](*dense, of_tokens, n, chunk, scale, **sizes)
    parts = tokens.new_empty(programs, 4 * width * (width + 1), dtype=torch.float32)
    for scores in (True, False):
        wrap_triton(modality_attention_weight_gradients_kernel)[(programs,)](
            *dense, parts, n, chunk, scale, **sizes, SCORES=scores
        )
    square = width * width
    of_weights = parts.sum(0).to(tokens.dtype).split([3 * square, square, 3 * width, width])
    weight, out, bias, out_bias = map(torch.clone, of_weights)  # results of an operator share no memory
    return of_tokens, weight.view(3 * width, width), bias, out.view(width, width), out_bias


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return cpp.differentiable_backward(ctx, grad)
    return *cpp.wanted(ctx, _gradients(grad, *ctx.saved_tensors, ctx.num_heads)), None


_forward.register_autograd(_backward, setup_context=cpp.save)


def refuses(tokens: Tensor, *rest: Any) -> str | None:
    """Why the Triton kernels cannot attend over ``tokens``; ``None`` when they can."""
    if rest[-1] == "items":
        return "axis is 'items', which PyTorch's own fused attention serves"
    if tokens.shape[1] > MOST_TOKENS:
        return f"tokens has {tokens.shape[1]} tokens a row, more than {MOST_TOKENS}"
    return triton_support.refuses("tokens", tokens, tokens.shape[2])


def modality_attention(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
    _axis: str,
) -> Tensor:
    """Attention over the tokens of each row, then their mean, by Triton kernels: (N, M, d) -> (N, d)."""
    result: Tensor = _forward(tokens, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, num_heads)
    return result
