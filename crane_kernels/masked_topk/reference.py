"""The meaning of ``masked_topk`` in plain PyTorch, in blocks of users: memory O(block + U k), never U x I."""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.selection import largest

BLOCK_ENTRIES = 2**21


def _fake(user: Tensor, _item: Tensor, _rowptr: Tensor | None, _col: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    return user.new_empty(user.shape[0], k), user.new_empty(user.shape[0], k, dtype=torch.int64)


# An operator, since torch.compile cannot see through what depends on where scores are equal.
@torch.library.custom_op("crane_kernels::masked_topk_reference", mutates_args=())
def _masked_topk(
    user: Tensor, item: Tensor, rowptr: Tensor | None, col: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Scores and indices of the best items; the graph of the seen ones by its arrays."""
    n_users, n_items = user.shape[0], item.shape[0]
    scores = user.new_full((n_users, k), -torch.inf)
    indices = torch.full((n_users, k), -1, dtype=torch.int64, device=user.device)
    found = min(k, n_items)
    if found == 0:
        return scores, indices
    rows = max(1, BLOCK_ENTRIES // n_items)
    for start in range(0, n_users, rows):
        block = slice(start, min(start + rows, n_users))
        score = user[block] @ item.T
        if rowptr is not None and col is not None:
            _mask(score, rowptr[block.start : block.stop + 1], col)
        scores[block, :found], indices[block, :found] = largest(score, found)
    return scores, indices.masked_fill_(scores == -torch.inf, -1)


_masked_topk.register_fake(_fake)


def _mask(score: Tensor, rowptr: Tensor, col: Tensor) -> None:
    """Set the scores of the items that these users have seen to -inf."""
    row = torch.repeat_interleave(rowptr.diff())
    score[row, col[rowptr[0] : rowptr[-1]].long()] = -torch.inf


@torch.no_grad()
def masked_topk(user: Tensor, item: Tensor, seen: Graph | None, k: int) -> tuple[Tensor, Tensor]:
    """Scores (U, k) and int64 indices (U, k) of each user's best items that are not in ``seen``."""
    arrays = (None, None) if seen is None else (seen.rowptr, seen.col)
    scores, indices = _masked_topk(user, item, *arrays, k)
    return scores, indices
