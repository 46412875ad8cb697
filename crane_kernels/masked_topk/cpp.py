"""``masked_topk`` by the compiled CPU kernel: no block of scores outside the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.graph import Graph


def refuses(user: Tensor, item: Tensor, *_: Any) -> str | None:
    """Why the compiled kernel cannot rank ``item`` for ``user``; ``None`` when it can."""
    reason = extension.refuses("user", user)
    if reason is not None:
        return reason
    if item.shape[0] >= 2**31:
        return f"item has {item.shape[0]} rows, more than 2^31 - 1"
    return None


@torch.no_grad()
def masked_topk(user: Tensor, item: Tensor, seen: Graph | None, k: int) -> tuple[Tensor, Tensor]:
    """Scores (U, k) and int64 indices (U, k) of each user's best items that are not in ``seen``."""
    arrays = (None, None) if seen is None else (seen.rowptr, seen.col)
    scores, indices = torch.ops.crane_kernels.masked_topk(user, item, *arrays, k)
    return scores, indices


def _fake(user: Tensor, _item: Tensor, _rowptr: Any, _col: Any, k: int) -> tuple[Tensor, Tensor]:
    return user.new_empty(user.shape[0], k), user.new_empty(user.shape[0], k, dtype=torch.int64)


if extension.missing() is None:
    torch.library.register_fake("crane_kernels::masked_topk", _fake)
