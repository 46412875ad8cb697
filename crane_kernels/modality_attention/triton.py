"""``modality_attention`` by Triton kernels. Per row, with tokens x_m, projections q_m, k_m, v_m and shares p_mk of the
softmax over k, and with g for the result's gradient::

    w_k  = mean_m p_mk        context = sum_k w_k v_k        result = W_o context + b_o
    dc   = W_o^T g            dp_k    = (dc . v_k) / M       ds_mk  = p_mk (dp_k - sum_j p_mj dp_j) / sqrt(head width)
    dq_m = sum_k ds_mk k_k    dk_k    = sum_m ds_mk q_m      dv_k   = w_k dc

Where the weights fit a program's registers (:func:`fits`), the forward is one pass over the rows, from tokens to result
on chip, by programs that each take a chunk of them. Its tiles of rows are transposed, (width, rows): the weights are
then the left operand of each product, which the warps of a program share out among themselves. Bytes moved for N rows
of M tokens of width d, with e bytes an element and P programs::

    loads   e N d M + e P (4 d^2 + 3 d)    tokens once; weights and biases, but the keys' bias, once a program
    stores  e N d

P is at most PROGRAMS and, beyond FEWEST_PROGRAMS, no more than keep these bytes within 1.1 of the tokens' and the
result's: with float32, M = 2 and d = 64 they are 1.04 at N = 255,404, 1.10 at N = 63,001 and 1.21 at N = 26,495, where
fewer programs would move less and leave more of the device idle.

Elsewhere, and in backward, PyTorch multiplies by the weights, and a kernel does what is between the products::

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
from crane_kernels.triton_support import config, input_precision, kernel, operator, padded

PROGRAMS = 120  # about one a multiprocessor of the larger chips
FEWEST_PROGRAMS = 64
SMALLEST_CHUNK = 64
MOST_TOKENS = 4
SLICE = tl.constexpr(16)  # columns of a product at a time
WIDEST = 64
TILE = 1024  # elements of a tile of the kernels between the products


@triton.jit
def head_features(HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, C: tl.constexpr, E: tl.constexpr):
    """The features of the heads, each padded to E places, and which places hold one."""
    place = tl.arange(0, C)
    head, column = place // E, place % E
    return head * HEAD_WIDTH + column, (head < HEADS) & (column < HEAD_WIDTH)


@triton.jit
def load_projections(in_weight, features, present, WIDTH: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """W_q, W_k and W_v, one below the other, and zeros, so that one product gives all projections.

    A tuple of SLICE columns each, (4 C, SLICE): products in full float32 would take more registers for all at once.
    """
    which = tl.arange(0, 4)
    rows = (which[:, None] * WIDTH + features[None, :])[:, :, None] * WIDTH
    real = ((which < 3)[:, None] & present[None, :])[:, :, None]
    result = ()
    for start in tl.static_range(0, D, SLICE):
        columns = start + tl.arange(0, SLICE)[None, None, :]
        weights = tl.load(in_weight + rows + columns, mask=real & (columns < WIDTH), other=0.0)
        result = result + (tl.reshape(weights, (4 * C, SLICE)),)
    return result


@triton.jit
def load_biases(in_bias, features, present, WIDTH: tl.constexpr, BIASED: tl.constexpr, C: tl.constexpr):
    """The biases of the projections: (4 C,), without the keys', which moves all scores of a query alike."""
    biases = tl.zeros((4, C), tl.float32)
    if BIASED:
        which = tl.arange(0, 4)[:, None]
        inside = ((which == 0) | (which == 2)) & present[None, :]
        biases += tl.load(in_bias + which * WIDTH + features[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.reshape(biases, (4 * C,))


@triton.jit
def rows_apart(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The four (ROWS, COLUMNS) that lie below each other."""
    upper, lower = tl.split(tl.permute(tl.reshape(values, (2, 2, ROWS, COLUMNS)), (2, 3, 1, 0)))
    first, second = tl.split(upper)
    third, fourth = tl.split(lower)
    return first, second, third, fourth


@triton.jit
def repeated(tile, COUNT: tl.constexpr):
    """A tuple of COUNT times the tile."""
    result = ()
    for _ in tl.static_range(COUNT):
        result = result + (tile,)
    return result


@triton.jit
def projections(
    tokens, rows, n, weights, biases, TOKENS: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The queries, keys and values of the rows' tokens: tuples of (C, BLOCK)."""
    totals = repeated(tl.zeros((4 * C, BLOCK), tl.float32) + biases[:, None], TOKENS)
    for start in tl.static_range(0, D, SLICE):
        columns = start + tl.arange(0, SLICE)
        inside = (rows[None, :] < n) & (columns[:, None] < WIDTH)
        further = ()
        for m in tl.static_range(TOKENS):
            places = (rows[None, :] * TOKENS + m) * WIDTH + columns[:, None]
            x = tl.load(tokens + places, mask=inside, other=0.0)
            further = further + (tl.dot(weights[start // SLICE], x, totals[m], input_precision=PRECISION),)
        totals = further
    queries = ()
    keys = ()
    values = ()
    for m in tl.static_range(TOKENS):
        query, key, value, _ = rows_apart(totals[m], C, BLOCK)
        queries = queries + (query,)
        keys = keys + (key,)
        values = values + (value,)
    return queries, keys, values


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
        arguments | constants(width, tokens, heads, True, True) | {"PRECISION": precision}
        for precision in precisions
        for tokens in (2, 4)
        if fits(dtype, width, tokens, heads)
    ]


KEY = ["TOKENS", "WIDTH", "HEADS"]


@kernel(forward_specimens, [config(8, 1, 255, BLOCK=16)], KEY)
def modality_attention_fwd_kernel(
    tokens, in_weight, in_bias, out_weight, out_bias, result, n, chunk, scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, BIASED: tl.constexpr, OUT_BIASED: tl.constexpr,
    C: tl.constexpr, E: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk of rows: the mean over tokens of their attention, projected."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, D)
    features, present = head_features(HEADS, WIDTH // HEADS, C, E)
    weights = load_projections(in_weight, features, present, WIDTH, C, D)
    biases = load_biases(in_bias, features, present, WIDTH, BIASED, C)
    square = (columns[:, None] < WIDTH) & present[None, :]
    out = tl.load(out_weight + columns[:, None] * WIDTH + features[None, :], mask=square, other=0.0)
    bias = tl.zeros((D,), tl.float32)
    if OUT_BIASED:
        bias += tl.load(out_bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    for start in tl.range(0, tl.minimum(chunk, n - program * chunk), BLOCK):
        rows = program * chunk + start + tl.arange(0, BLOCK)
        inside = (rows[None, :] < n) & (columns[:, None] < WIDTH)
        queries, keys, values = projections(tokens, rows, n, weights, biases, TOKENS, WIDTH, C, D, BLOCK, PRECISION)
        shares = repeated(tl.zeros((C // E, BLOCK), tl.float32), TOKENS)
        for m in tl.static_range(TOKENS):
            shares = added(shares, softmax(queries[m] * scale, keys, TOKENS, C, E, BLOCK), TOKENS)
        context = mixed_values(shares, values, TOKENS, C, E, BLOCK) / TOKENS
        projected = tl.dot(out, context.to(out.dtype), input_precision=PRECISION) + bias[:, None]
        places = rows[None, :] * WIDTH + columns[:, None]
        tl.store(result + places, projected.to(result.dtype.element_ty), mask=inside)


def between_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    """For the compile matrix: what both kernels between the products take."""
    arguments = dict.fromkeys(("projected", "context"), "*x") | {"n": "i32", "scale": "fp32"}
    return [arguments | between_constants(width, tokens, heads_of(width)) for tokens in (2, 4)]


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
    features, present = head_features(HEADS, WIDTH // HEADS, C, E)
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
    features, _ = head_features(HEADS, WIDTH // HEADS, C, E)
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
    features, _ = head_features(HEADS, WIDTH // HEADS, C, E)
    of_row = rows[None, :] * WIDTH + features[:, None]
    above = tl.load(grad_context + of_row, mask=inside, other=0.0).to(tl.float32) / TOKENS
    pulls = products(above, values, TOKENS, C, E, BLOCK)
    shares = repeated(tl.zeros((C // E, BLOCK), tl.float32), TOKENS)
    grad_keys = repeated(tl.zeros((C, BLOCK), tl.float32), TOKENS)
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
        tl.store(grad_projected + places + m * 3 * WIDTH, grad_query.to(kind), mask=inside)
    for k in tl.static_range(TOKENS):
        token = grad_projected + places + k * 3 * WIDTH
        tl.store(token + WIDTH, grad_keys[k].to(kind), mask=inside)
        tl.store(token + 2 * WIDTH, (to_features(shares[k], C, E, BLOCK) * above).to(kind), mask=inside)
    mean_value = mixed_values(shares, values, TOKENS, C, E, BLOCK) / TOKENS
    tl.store(context + of_row, mean_value.to(kind), mask=inside)


def chunks(n: int, tokens: int, width: int) -> tuple[int, int]:
    """Rows of a chunk and the number of chunks, which is a program each: see P in the module's docstring."""
    programs = max(FEWEST_PROGRAMS, min(PROGRAMS, n * (tokens + 1) // (40 * width + 30)))
    chunk = max(SMALLEST_CHUNK, -(-n // (16 * programs)) * 16)
    return chunk, max(1, -(-n // chunk))


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
