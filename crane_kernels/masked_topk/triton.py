"""``masked_topk`` by a Triton kernel: scores exist a tile at a time, in registers; no U x I matrix.

A program ranks BLOCK_M users. A score and its item are one int64 key that orders by score, then by lowest item; the k
best keys so far are kept in no order, and a tile's best key takes the place of the worst of them for as long as it is
better. A user's seen items ascend, so each is read once, when its tile comes.

Bytes moved, with e bytes an element and c bytes a column index of the graph:

    loads   e U d + ceil(U / BLOCK_M) e I d + 16 U + c nnz    users, items for each block of users, seen items
    stores  (e + 8) U k
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from crane_kernels import triton_support
from crane_kernels.graph import Graph

MOST = 64  # items that fit the registers of a program, for each of its users
BLOCK_M, BLOCK_N = 16, 32  # users of a program, and items that it scores at a time
CONFIGS = [triton_support.config(num_warps=4, num_stages=stages, maxnreg=255) for stages in (1, 2)]


def refuses(user: Tensor, item: Tensor, _seen: Graph | None, k: int) -> str | None:
    """Why the Triton kernel cannot rank ``item`` for ``user``; ``None`` when it can."""
    if k > MOST:
        return f"k is {k}, above {MOST}"
    if item.shape[0] >= 2**31:
        return f"item has {item.shape[0]} rows, more than 2^31 - 1"
    return triton_support.refuses("user", user, user.shape[1])


NOTHING = tl.constexpr(-(2**63))
INT31 = tl.constexpr(2**31 - 1)
MINUS_INFINITY = tl.constexpr((-(2**31) + 0x007FFFFF) << 32)  # key of -inf, below that of every item


@triton.jit
def _key(score, items):
    """Int64 that is greater for greater scores, and for lower items of equal scores."""
    score = tl.where(score == 0.0, 0.0, score)  # zeros of either sign are equal
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & INT31)
    return (ordered.to(tl.int64) << 32) + (INT31 - items)


@triton.jit
def _load_rows(pointer, left, width, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """BLOCK rows at ``pointer``, ``left`` of which exist; the others are zero."""
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    mask = (rows < left)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + (rows[:, None] * width + columns[None, :]), mask=mask, other=0.0)


def _specimens(_dtype: torch.dtype, width: int) -> list[dict[str, Any]]:
    pointers = {"user": "*x", "item": "*x", "rowptr": "*i64", "col": "*i32", "scores": "*x", "indices": "*i64"}
    blocks = {"BLOCK_K": MOST, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_D": triton_support.padded(width)}
    sizes = dict.fromkeys(("n_users", "n_items", "width", "k"), "i32")
    return [pointers | sizes | blocks | {"HAS_SEEN": True, "PRECISION": "ieee"}]


@triton_support.kernel(_specimens, CONFIGS, key=["width", "BLOCK_K", "HAS_SEEN"])
def masked_topk_kernel(
    user,
    item,
    rowptr,
    col,
    scores,
    indices,
    n_users,
    n_items,
    width,
    k,
    HAS_SEEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Scores and indices of the k best unseen items of BLOCK_M users; ``BLOCK_K`` is at least k."""
    dtype: tl.constexpr = user.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    x = _load_rows(user + first * width, n_users - first, width, BLOCK_M, BLOCK_D)
    slots = tl.arange(0, BLOCK_K)
    best = tl.zeros([BLOCK_M, BLOCK_K], tl.int64) + MINUS_INFINITY + slots[None, :]
    worst = tl.min(best, 1)
    if HAS_SEEN:
        cursor = tl.load(rowptr + rows, mask=rows < n_users, other=0)
        end = tl.load(rowptr + rows + 1, mask=rows < n_users, other=0)
        following = tl.load(col + cursor, mask=cursor < end, other=n_items)
    for start in range(0, n_items, BLOCK_N):
        items = start + tl.arange(0, BLOCK_N)
        y = _load_rows(item, n_items - start, width, BLOCK_N, BLOCK_D)
        item += BLOCK_N * width
        score = tl.dot(x, tl.trans(y), input_precision=PRECISION).to(dtype).to(tl.float32)
        key = tl.where((items < n_items)[None, :] & (rows < n_users)[:, None], _key(score, items[None, :]), NOTHING)
        if HAS_SEEN:
            while tl.min(following, 0) < tl.minimum(start + BLOCK_N, n_items):
                key = tl.where(following[:, None] == items[None, :], NOTHING, key)
                used = following < start + BLOCK_N
                cursor += used.to(tl.int64)
                entry = tl.load(col + cursor, mask=used & (cursor < end), other=n_items)
                following = tl.where(used, entry, following)
        top = tl.max(key, 1)
        while tl.max((top > worst).to(tl.int32), 0) > 0:
            replaced = (best == worst[:, None]) & (top > worst)[:, None]
            best = tl.where(replaced, top[:, None], best)
            key = tl.where(key == top[:, None], NOTHING, key)
            worst = tl.min(best, 1)
            top = tl.max(key, 1)
    best = tl.sort(best, 1, descending=True)
    ordered = (best >> 32).to(tl.int32)
    score = (ordered ^ ((ordered >> 31) & INT31)).to(tl.float32, bitcast=True)
    index = tl.where(score == float("-inf"), -1, INT31 - (best & INT31))
    place = rows[:, None] * k + slots[None, :]
    mask = (rows < n_users)[:, None] & (slots < k)[None, :]
    tl.store(scores + place, score.to(dtype), mask=mask)
    tl.store(indices + place, index, mask=mask)


def _fake(user: Tensor, _item: Tensor, _rowptr: Any, _col: Any, k: int) -> tuple[Tensor, Tensor]:
    return user.new_empty(user.shape[0], k), user.new_empty(user.shape[0], k, dtype=torch.int64)


@triton_support.operator("masked_topk_triton", _fake)
def _masked_topk(
    user: Tensor, item: Tensor, rowptr: Tensor | None, col: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Scores and indices of the best items; the graph of the seen ones by its arrays."""
    n_users, width = user.shape
    user, item = user.contiguous(), item.contiguous()
    scores, indices = _fake(user, item, rowptr, col, k)
    if n_users == 0:
        return scores, indices
    # An absent tensor is any other, which the kernel does not touch.
    graph = (user, user) if rowptr is None else (rowptr, col)
    wrap_triton(masked_topk_kernel)[(triton.cdiv(n_users, BLOCK_M),)](
        *(user, item, *graph, scores, indices, n_users, item.shape[0], width, k),
        HAS_SEEN=rowptr is not None,
        PRECISION=triton_support.input_precision(user.dtype),
        BLOCK_K=triton_support.padded(k),
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_D=triton_support.padded(width),
    )
    return scores, indices


@torch.no_grad()
def masked_topk(user: Tensor, item: Tensor, seen: Graph | None, k: int) -> tuple[Tensor, Tensor]:
    """Scores (U, k) and int64 indices (U, k) of each user's best items that are not in ``seen``."""
    arrays = (None, None) if seen is None else (seen.rowptr, seen.col)
    scores, indices = _masked_topk(user, item, *arrays, k)
    return scores, indices
