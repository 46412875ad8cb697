"""The meaning of ``sample_negatives`` in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crane_kernels.graph import Graph

Array = np.ndarray[Any, Any]


def sample_negatives(graph: Graph, users: Tensor, rank: Array) -> Tensor:
    """The ``rank``-th item, from 0, that each of ``users`` has no edge to: (B,) int64.

    It is the rank plus the number of positives before it: no loop over users, and no draw that is thrown away.
    """
    rowptr, col, rows = (array.cpu().numpy() for array in (graph.rowptr, graph.col, users))
    return torch.from_numpy(rank + _positives_before(col, rowptr[rows], rowptr[rows + 1], rank)).to(users.device)


def _positives_before(col: Array, start: Array, stop: Array, rank: Array) -> Array:
    """How many positives precede the rank-th non-positive of each row: those at j with col[start + j] - j <= rank.

    col[start + j] - j, the number of non-positives before positive j, never falls: a binary search in all rows at once.
    """
    low, high = start.copy(), stop.copy()
    for _ in range(int((stop - start).max(initial=0)).bit_length()):
        open_rows = low < high
        middle = (low + high) >> 1
        before = np.where(open_rows, col[np.where(open_rows, middle, 0)] - (middle - start) <= rank, False)
        low = np.where(before, middle + 1, low)
        high = np.where(open_rows & ~before, middle, high)
    return low - start
