"""The meaning of ``sample_negatives`` in numpy: no loop over users, and no draw that is thrown away."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crane_kernels.graph import Graph

Array = np.ndarray[Any, Any]


def sample_negatives(graph: Graph, users: Tensor, generator: np.random.Generator) -> Tensor:
    """One item for each of ``users``, uniform over those without an edge: (B,) int64.

    For each user a rank r is drawn, uniform in [0, I - degree), by one call of ``generator.integers``; the r-th item
    without an edge is r plus the number of positives before it.
    """
    rowptr, col, rows = (array.cpu().numpy() for array in (graph.rowptr, graph.col, users))
    start, stop = rowptr[rows], rowptr[rows + 1]
    rank = generator.integers(0, graph.n_cols - (stop - start))
    return torch.from_numpy(rank + _positives_before(col, start, stop, rank)).to(users.device)


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
