"""Exact selection of the largest, with ties decided by position: ``torch.topk`` leaves their order open."""

from __future__ import annotations

import torch
from torch import Tensor

TIED_ENTRIES = 2**21  # scores of rows with ties at a time: they take several times their memory


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in descending order, ties by lowest column.

    Args:
        scores: (b, n) without NaN.
        k: 1 to n.

    Returns:
        values and int64 columns, both (b, k).
    """
    n = scores.shape[1]
    values, columns = scores.topk(min(k + 1, n), dim=1)
    if k < n:
        open_ends = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        values, columns = values[:, :k], columns[:, :k]
        for rows in torch.split(open_ends, max(1, TIED_ENTRIES // n)):
            columns[rows] = _break_ties(scores[rows], values[rows, -1:], k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _break_ties(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Columns above each row's threshold and the first ones equal to it, k together: (b, k) int64."""
    above = scores > threshold
    equal = scores == threshold
    wanted = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)
