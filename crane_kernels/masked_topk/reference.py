"""The meaning of ``masked_topk`` in plain PyTorch, in blocks of users: memory O(block + U k), never U x I."""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.selection import largest

BLOCK_ENTRIES = 2**21


@torch.no_grad()
def masked_topk(user: Tensor, item: Tensor, seen: Graph | None, k: int) -> tuple[Tensor, Tensor]:
    """Scores (U, k) and int64 indices (U, k) of each user's best items that are not in ``seen``."""
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
        if seen is not None:
            _mask(score, seen, block)
        scores[block, :found], indices[block, :found] = largest(score, found)
    return scores, indices.masked_fill_(scores == -torch.inf, -1)


def _mask(score: Tensor, seen: Graph, block: slice) -> None:
    """Set the scores of the items that the users of ``block`` have seen to -inf."""
    rowptr = seen.rowptr[block.start : block.stop + 1]
    row = torch.repeat_interleave(rowptr.diff())
    score[row, seen.col[rowptr[0] : rowptr[-1]].long()] = -torch.inf
