"""``modality_attention`` by Triton kernels: all of it in one pass over rows, and backward in one or two.

A program goes through blocks of rows, a group of heads at a time. Queries, keys, values and the attention of a block
exist in registers only; backward computes them again and saves nothing but the inputs. The weights' gradients are sums
in float32, one a program, which are added in a fixed order: the same bits on every run.

Bytes moved for N rows of M tokens of width d, with e bytes an element, P programs (at most PROGRAMS), G groups of heads
and w = 4 d^2 elements of weights (and 3 d of biases, read by programs and groups like them):

    forward    loads  e N d M + e w P        the weights once a program if G = 1, else once a block of rows
               stores e N d
    backward   loads  e N d (M + 1) + e w P  if G = 1; else tokens and gradient once more and once more a group
               stores e N d M + 4 w P        the sums of the weights' gradients

The bias of the keys moves nothing: softmax does not see it. Weights are read from the cache of the device, tokens and
gradients from its memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from crane_kernels import triton_support
from crane_kernels.modality_attention import cpp

PROGRAMS = 128
WIDEST_HEAD = 64
ROWS = 16  # of a block: the least that a product of tiles takes


def refuses(tokens: Tensor, *rest: Any) -> str | None:
    """Why the Triton kernels cannot attend over ``tokens``; ``None`` when they can."""
    reason = triton_support.refuses("tokens", tokens, tokens.shape[2]) or cpp.refuses_in_general(tokens, *rest)
    if reason is None and tokens.shape[2] // rest[-2] > WIDEST_HEAD:
        return f"heads are {tokens.shape[2] // rest[-2]} wide, above {WIDEST_HEAD}"
    return reason


@triton.jit
def _features(group, heads, head_width, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr):  # noqa: N803
    """The features of a group of heads, each padded to BLOCK_E, and which of them exist."""
    column = tl.arange(0, BLOCK_C)
    head, place = group * (BLOCK_C // BLOCK_E) + column // BLOCK_E, column % BLOCK_E
    return head * head_width + place, (head < heads) & (place < head_width)


@triton.jit
def _weights(in_weight, out_weight, features, present, width, BLOCK_D: tl.constexpr):  # noqa: N803
    """The rows of W_q, W_k and W_v and, transposed, the columns of W_o that belong to the features."""
    columns = tl.arange(0, BLOCK_D)
    mask = present[:, None] & (columns < width)[None, :]
    rows = features[:, None] * width + columns[None, :]
    query = tl.load(in_weight + rows, mask=mask, other=0.0)
    key = tl.load(in_weight + width * width + rows, mask=mask, other=0.0)
    value = tl.load(in_weight + 2 * width * width + rows, mask=mask, other=0.0)
    out = tl.load(out_weight + columns[None, :] * width + features[:, None], mask=mask, other=0.0)
    return query, key, value, out


@triton.jit
def _biases(in_bias, features, present, width, HAS_BIAS: tl.constexpr, BLOCK_C: tl.constexpr):  # noqa: N803
    """The features' biases of the query and the value."""
    if HAS_BIAS:
        query = tl.load(in_bias + features, mask=present, other=0.0).to(tl.float32)
        value = tl.load(in_bias + 2 * width + features, mask=present, other=0.0).to(tl.float32)
    else:
        query = tl.zeros([BLOCK_C], tl.float32)
        value = tl.zeros([BLOCK_C], tl.float32)
    return query, value


@triton.jit
def _attend(
    x,
    query_weight,
    key_weight,
    value_weight,
    query_bias,
    value_bias,
    scale,
    TOKENS: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_B: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
    BLOCK_E: tl.constexpr,  # noqa: N803
):
    """Query (times the scale), key and value of all tokens (row, token, head, feature); attention (row, query, key,
    head); its mean over the queries (row, key, head)."""
    heads: tl.constexpr = BLOCK_C // BLOCK_E
    query = (tl.dot(x, tl.trans(query_weight), input_precision=PRECISION) + query_bias[None, :]) * scale
    key = tl.dot(x, tl.trans(key_weight), input_precision=PRECISION)
    value = tl.dot(x, tl.trans(value_weight), input_precision=PRECISION) + value_bias[None, :]
    query = tl.reshape(query, [BLOCK_B, BLOCK_M, heads, BLOCK_E])
    key = tl.reshape(key, [BLOCK_B, BLOCK_M, heads, BLOCK_E])
    value = tl.reshape(value, [BLOCK_B, BLOCK_M, heads, BLOCK_E])
    score = tl.sum(query[:, :, None, :, :] * key[:, None, :, :, :], 4)
    token = tl.arange(0, BLOCK_M)
    score = tl.where((token < TOKENS)[None, None, :, None], score, float("-inf"))
    share = tl.exp(score - tl.max(score, 2)[:, :, None, :])
    attention = share / tl.sum(share, 2)[:, :, None, :]
    real = tl.where((token < TOKENS)[None, :, None, None], attention, 0.0)
    return query, key, value, attention, tl.sum(real, 1) / TOKENS


@triton.jit
def _token_places(width, BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr, TOKENS: tl.constexpr):  # noqa: N803
    """For each row of a tile of tokens: its row of the block, and where it is from the block's beginning on."""
    place = tl.arange(0, BLOCK_B * BLOCK_M)
    row, token = place // BLOCK_M, place % BLOCK_M
    return tl.where(token < TOKENS, row, 2**30), (row * TOKENS + token) * width


def groups(dtype: torch.dtype, tokens: int, width: int, num_heads: int, backward: bool) -> tuple[int, int, int]:
    """Features a group of heads has (BLOCK_C), features of a padded head (BLOCK_E), and how many groups there are."""
    head = 1 << (width // num_heads - 1).bit_length()
    in_all = max(16, head << (num_heads - 1).bit_length())
    head = max(head, 16) if num_heads == 1 else head
    most = _most_features(dtype, tokens, triton_support.padded(width), backward)
    features = max(16, head, min(in_all, most))
    return features, head, -(-num_heads // (features // head))


def _most_features(dtype: torch.dtype, tokens: int, width: int, backward: bool) -> int:
    """As many features as leave room in registers and shared memory for what else a block has."""
    del dtype
    if tokens > 2 or width > 64:
        return 16
    return 64 if width <= 64 else 32


def _specimens(backward: bool, dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    names = ("tokens", "in_weight", "in_bias", "out_weight")
    names += ("grad", "grad_tokens") if backward else ("out_bias", "out")
    pointers = dict.fromkeys(names, "*x") | ({"sums": "*fp32"} if backward else {})
    sizes = {"n": "i32", "blocks": "i32", "width": "i32", "heads": "i32", "head_width": "i32", "scale": "fp32"}
    found = []
    for tokens in (2, 4):
        constants = _constants(dtype, tokens, width, 4, backward)
        one = constants["GROUPS"] == 1
        for tokens_too, weights_too in ((True, True),) if one else ((True, False), (False, True)):
            flags = {"HAS_BIAS": True}
            flags |= {"TOKENS_TOO": tokens_too, "WEIGHTS_TOO": weights_too} if backward else {"HAS_OUT_BIAS": True}
            found.append({**pointers, **sizes, **constants, **flags})
            if not backward:
                break
    return found


def _constants(dtype: torch.dtype, tokens: int, width: int, num_heads: int, backward: bool) -> dict[str, Any]:
    features, head, count = groups(dtype, tokens, width, num_heads, backward)
    return {
        "TOKENS": tokens,
        "GROUPS": count,
        "PRECISION": triton_support.input_precision(dtype),
        "BLOCK_B": ROWS,
        "BLOCK_M": 1 << (tokens - 1).bit_length(),
        "BLOCK_C": features,
        "BLOCK_E": head,
        "BLOCK_D": triton_support.padded(width),
    }


def _forward_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    return _specimens(False, dtype, width)


def _backward_specimens(dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    return _specimens(True, dtype, width)


CONFIGS = [triton_support.config(num_warps=8, num_stages=1), triton_support.config(num_warps=4, num_stages=1)]
KEY = ["width", "head_width", "TOKENS"]


@triton_support.kernel(_forward_specimens, CONFIGS, key=KEY)
def modality_attention_fwd_kernel(
    tokens,
    in_weight,
    in_bias,
    out_weight,
    out_bias,
    out,
    n,
    blocks,
    width,
    heads,
    head_width,
    scale,
    HAS_BIAS: tl.constexpr,  # noqa: N803
    HAS_OUT_BIAS: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_B: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
    BLOCK_E: tl.constexpr,  # noqa: N803
    BLOCK_D: tl.constexpr,  # noqa: N803
):
    """``blocks`` blocks of rows a program: mean over tokens of the attention, projected."""
    columns = tl.arange(0, BLOCK_D)
    inside = columns < width
    rows = tl.arange(0, BLOCK_B)
    token_row, token_place = _token_places(width, BLOCK_B, BLOCK_M, TOKENS)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if HAS_OUT_BIAS:
        bias = tl.load(out_bias + columns, mask=inside, other=0.0).to(tl.float32)
    if GROUPS == 1:
        features, present = _features(0, heads, head_width, BLOCK_C, BLOCK_E)
        query_weight, key_weight, value_weight, rows_of_out = _weights(
            in_weight, out_weight, features, present, width, BLOCK_D
        )
        query_bias, value_bias = _biases(in_bias, features, present, width, HAS_BIAS, BLOCK_C)
    first = tl.program_id(0).to(tl.int64) * blocks * BLOCK_B
    for _ in range(0, blocks):
        left = n - first
        x = tl.load(
            tokens + first * TOKENS * width + token_place[:, None] + columns[None, :],
            mask=(token_row < left)[:, None] & inside[None, :],
            other=0.0,
        )
        result = tl.zeros([BLOCK_B, BLOCK_D], tl.float32) + bias[None, :]
        for group in range(0, GROUPS):
            if GROUPS > 1:
                features, present = _features(group, heads, head_width, BLOCK_C, BLOCK_E)
                query_weight, key_weight, value_weight, rows_of_out = _weights(
                    in_weight, out_weight, features, present, width, BLOCK_D
                )
                query_bias, value_bias = _biases(in_bias, features, present, width, HAS_BIAS, BLOCK_C)
            _query, _key, value, _attention, mean = _attend(
                x,
                query_weight,
                key_weight,
                value_weight,
                query_bias,
                value_bias,
                scale,
                TOKENS,
                PRECISION,
                BLOCK_B,
                BLOCK_M,
                BLOCK_C,
                BLOCK_E,
            )
            context = tl.reshape(tl.sum(mean[:, :, :, None] * value, 1), [BLOCK_B, BLOCK_C])
            result = tl.dot(context.to(x.dtype), rows_of_out, result, input_precision=PRECISION)
        tl.store(
            out + first * width + rows[:, None] * width + columns[None, :],
            result.to(out.dtype.element_ty),
            mask=(rows < left)[:, None] & inside[None, :],
        )
        first += BLOCK_B


@triton_support.kernel(_backward_specimens, CONFIGS, key=[*KEY, "TOKENS_TOO", "WEIGHTS_TOO"])
def modality_attention_bwd_kernel(
    tokens,
    in_weight,
    in_bias,
    out_weight,
    grad,
    grad_tokens,
    sums,
    n,
    blocks,
    width,
    heads,
    head_width,
    scale,
    HAS_BIAS: tl.constexpr,  # noqa: N803
    TOKENS_TOO: tl.constexpr,  # noqa: N803
    WEIGHTS_TOO: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_B: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
    BLOCK_E: tl.constexpr,  # noqa: N803
    BLOCK_D: tl.constexpr,  # noqa: N803
):
    """Gradients of the tokens (``TOKENS_TOO``) and of the weights (``WEIGHTS_TOO``), of ``blocks`` blocks a program.

    ``sums`` is (programs, 4 d^2 + 3 d): W_q, W_k, W_v, W_o, then the biases of query, value and output. Without the
    tokens' gradients a program sees to the group of its second number; else to all groups.
    """
    NEEDS_ALL: tl.constexpr = TOKENS_TOO and GROUPS > 1
    columns = tl.arange(0, BLOCK_D)
    inside = columns < width
    rows = tl.arange(0, BLOCK_B)
    token_row, token_place = _token_places(width, BLOCK_B, BLOCK_M, TOKENS)
    own = tl.program_id(1)
    if not NEEDS_ALL:
        features, present = _features(own, heads, head_width, BLOCK_C, BLOCK_E)
        query_weight, key_weight, value_weight, rows_of_out = _weights(
            in_weight, out_weight, features, present, width, BLOCK_D
        )
        query_bias, value_bias = _biases(in_bias, features, present, width, HAS_BIAS, BLOCK_C)
    if WEIGHTS_TOO:
        sum_query = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
        sum_key = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
        sum_value = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
        sum_out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
        sum_query_bias = tl.zeros([BLOCK_C], tl.float32)
        sum_value_bias = tl.zeros([BLOCK_C], tl.float32)
        sum_out_bias = tl.zeros([BLOCK_D], tl.float32)
    first = tl.program_id(0).to(tl.int64) * blocks * BLOCK_B
    for _ in range(0, blocks):
        left = n - first
        places = first * TOKENS * width + token_place[:, None] + columns[None, :]
        token_mask = (token_row < left)[:, None] & inside[None, :]
        x = tl.load(tokens + places, mask=token_mask, other=0.0)
        g = tl.load(
            grad + first * width + rows[:, None] * width + columns[None, :],
            mask=(rows < left)[:, None] & inside[None, :],
            other=0.0,
        )
        if TOKENS_TOO:
            grad_x = tl.zeros([BLOCK_B * BLOCK_M, BLOCK_D], tl.float32)
        for group in range(0, GROUPS if NEEDS_ALL else 1):
            if NEEDS_ALL:
                features, present = _features(group, heads, head_width, BLOCK_C, BLOCK_E)
                query_weight, key_weight, value_weight, rows_of_out = _weights(
                    in_weight, out_weight, features, present, width, BLOCK_D
                )
                query_bias, value_bias = _biases(in_bias, features, present, width, HAS_BIAS, BLOCK_C)
            query, key, value, attention, mean = _attend(
                x,
                query_weight,
                key_weight,
                value_weight,
                query_bias,
                value_bias,
                scale,
                TOKENS,
                PRECISION,
                BLOCK_B,
                BLOCK_M,
                BLOCK_C,
                BLOCK_E,
            )
            flat_grad_context = tl.dot(g, tl.trans(rows_of_out), input_precision=PRECISION)
            grad_context = tl.reshape(flat_grad_context, [BLOCK_B, 1, BLOCK_C // BLOCK_E, BLOCK_E])
            grad_mean = tl.sum(grad_context * value, 3)[:, None, :, :] / TOKENS
            real = (tl.arange(0, BLOCK_M) < TOKENS)[None, :, None, None]
            centred = grad_mean - tl.sum(attention * grad_mean, 2)[:, :, None, :]
            grad_score = tl.where(real, attention * centred, 0.0)
            grad_query = tl.sum(grad_score[:, :, :, :, None] * key[:, None, :, :, :], 2) * scale
            grad_key = tl.sum(grad_score[:, :, :, :, None] * query[:, :, None, :, :], 1)
            grad_value = mean[:, :, :, None] * grad_context
            grad_query = tl.reshape(grad_query, [BLOCK_B * BLOCK_M, BLOCK_C])
            grad_value = tl.reshape(grad_value, [BLOCK_B * BLOCK_M, BLOCK_C])
            half_query = grad_query.to(x.dtype)
            half_key = tl.reshape(grad_key, [BLOCK_B * BLOCK_M, BLOCK_C]).to(x.dtype)
            half_value = grad_value.to(x.dtype)
            if TOKENS_TOO:
                grad_x = tl.dot(half_query, query_weight, grad_x, input_precision=PRECISION)
                grad_x = tl.dot(half_key, key_weight, grad_x, input_precision=PRECISION)
                grad_x = tl.dot(half_value, value_weight, grad_x, input_precision=PRECISION)
            if WEIGHTS_TOO:
                context = tl.reshape(tl.sum(mean[:, :, :, None] * value, 1), [BLOCK_B, BLOCK_C]).to(x.dtype)
                sum_query = tl.dot(tl.trans(half_query), x, sum_query, input_precision=PRECISION)
                sum_key = tl.dot(tl.trans(half_key), x, sum_key, input_precision=PRECISION)
                sum_value = tl.dot(tl.trans(half_value), x, sum_value, input_precision=PRECISION)
                sum_out = tl.dot(tl.trans(context), g, sum_out, input_precision=PRECISION)
                sum_query_bias += tl.sum(grad_query, 0)
                sum_value_bias += tl.sum(flat_grad_context, 0)
                sum_out_bias += tl.sum(g.to(tl.float32), 0)
        if TOKENS_TOO:
            tl.store(grad_tokens + places, grad_x.to(grad_tokens.dtype.element_ty), mask=token_mask)
        first += BLOCK_B
    if WEIGHTS_TOO:
        square = width * width
        sums += tl.program_id(0).to(tl.int64) * (4 * square + 3 * width)
        mask = present[:, None] & inside[None, :]
        at_rows = sums + features[:, None] * width + columns[None, :]
        tl.store(at_rows, sum_query, mask=mask)
        tl.store(at_rows + square, sum_key, mask=mask)
        tl.store(at_rows + 2 * square, sum_value, mask=mask)
        tl.store(sums + 3 * square + columns[None, :] * width + features[:, None], sum_out, mask=mask)
        tl.store(sums + 4 * square + features, sum_query_bias, mask=present)
        tl.store(sums + 4 * square + width + features, sum_value_bias, mask=present)
        tl.store(sums + 4 * square + 2 * width + columns, sum_out_bias, mask=inside & (own == 0))


def _programs(n: int) -> tuple[int, int]:
    """Programs, and blocks of rows each goes through."""
    blocks = triton.cdiv(n, ROWS)
    each = max(1, triton.cdiv(blocks, PROGRAMS))
    return triton.cdiv(blocks, each), each


def _sizes(tokens: Tensor, num_heads: int, blocks: int) -> tuple[Any, ...]:
    """What both kernels take after their tensors."""
    head_width = tokens.shape[2] // num_heads
    return tokens.shape[0], blocks, tokens.shape[2], num_heads, head_width, head_width**-0.5


def _forward_fake(tokens: Tensor, *_: Any) -> Tensor:
    return tokens.new_empty(tokens.shape[0], tokens.shape[2])


@triton_support.operator("modality_attention_triton", _forward_fake)
def _forward(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
) -> Tensor:
    tokens, in_weight, out_weight = tokens.contiguous(), in_proj_weight.contiguous(), out_proj_weight.contiguous()
    n, count, width = tokens.shape
    out = tokens.new_empty(n, width)
    if n == 0:
        return out
    programs, blocks = _programs(n)
    # An absent bias is any other tensor, which the kernel does not touch.
    in_bias = in_weight if in_proj_bias is None else in_proj_bias.contiguous()
    out_bias = in_weight if out_proj_bias is None else out_proj_bias.contiguous()
    wrap_triton(modality_attention_fwd_kernel)[(programs,)](
        *(tokens, in_weight, in_bias, out_weight, out_bias, out),
        *_sizes(tokens, num_heads, blocks),
        HAS_BIAS=in_proj_bias is not None,
        HAS_OUT_BIAS=out_proj_bias is not None,
        **_constants(tokens.dtype, count, width, num_heads, backward=False),
    )
    return out


@triton_support.operator("modality_attention_triton_gradient", cpp.fake_backward)
def _gradient(
    grad: Tensor,
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the tokens, of the input projection and its bias, and of the output projection and its bias."""
    tokens, in_weight, out_weight = tokens.contiguous(), in_proj_weight.contiguous(), out_proj_weight.contiguous()
    grad = grad.contiguous()
    n, count, width = tokens.shape
    programs, blocks = _programs(n)
    grad_tokens = torch.empty_like(tokens)
    sums = tokens.new_empty(programs, 4 * width * width + 3 * width, dtype=torch.float32)
    constants = _constants(tokens.dtype, count, width, num_heads, backward=True)
    in_bias = in_weight if in_proj_bias is None else in_proj_bias.contiguous()
    one = constants["GROUPS"] == 1
    # The weights' sums of one group fill the registers: several groups have a program each, and the tokens another.
    for of_tokens, of_weights in (((True, True),) if one else ((True, False), (False, True))) if n else ():
        wrap_triton(modality_attention_bwd_kernel)[(programs, constants["GROUPS"] if not of_tokens else 1)](
            *(tokens, in_weight, in_bias, out_weight, grad, grad_tokens, sums),
            *_sizes(tokens, num_heads, blocks),
            HAS_BIAS=in_proj_bias is not None,
            TOKENS_TOO=of_tokens,
            WEIGHTS_TOO=of_weights,
            **constants,
        )
    weights, biases = sums.sum(0).to(tokens.dtype).split([4 * width * width, 3 * width])
    in_sum, out_sum = weights.view(4 * width, width).split([3 * width, width])
    query, value, out = biases.split(width)
    return grad_tokens, in_sum.clone(), torch.cat([query, torch.zeros_like(query), value]), out_sum.clone(), out.clone()


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return cpp.differentiable_backward(ctx, grad)
    return *cpp.wanted(ctx, _gradient(grad, *ctx.saved_tensors, ctx.num_heads)), None


_forward.register_autograd(_backward, setup_context=cpp.save)


def modality_attention(*arguments: Any) -> Tensor:
    """Attention over the tokens of each row, then their mean: (N, M, d) -> (N, d)."""
    result: Tensor = _forward(*arguments[:6])
    return result
