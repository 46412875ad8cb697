"""The meaning of ``knn_graph`` in plain PyTorch: memory of the features in int32 and of blocks, never I x I.

Cosines are computed exactly. Rows of length one are rounded to multiples of 2^-26, and kept as those integers. No
partial sum of their products exceeds 2^53 (Cauchy-Schwarz), so float64 adds them without rounding, in any order. Equal
rows therefore have equal cosines, whatever the block, the number of threads or the machine, and ties are ties. The
rounding of the rows moves a cosine by about 1e-8, less than float32 arithmetic would.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.selection import largest

BLOCK_ENTRIES = 2**24  # cosines held at a time
CHUNK_ENTRIES = 2**22  # entries of rows held in float64 at a time
STEPS = 2.0**26


def knn_graph(features: Tensor, k: int) -> Graph:
    """Row-normalised graph of the k rows of the highest cosine: (I, d) -> Graph (I, I)."""
    return graph_of(features, k, nearest)


@torch.no_grad()
def graph_of(features: Tensor, k: int, find: Callable[[Tensor, int], Tensor]) -> Graph:
    """The graph whose neighbours ``find`` gives: of (n, d) rounded directions and k <= n, ascending (n, k) int64."""
    n = features.shape[0]
    rows = torch.linalg.vector_norm(features, ord=torch.inf, dim=1).nonzero()[:, 0]  # those that have a direction
    k = min(k, len(rows))
    kept = torch.ones(n, dtype=torch.int64, device=features.device).index_fill_(0, rows, k)
    rowptr = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    col = torch.arange(n, device=features.device).repeat_interleave(kept)
    if k:
        places = rowptr[rows, None] + torch.arange(k, device=col.device)
        col[places] = rows[find(_rounded_directions(features, rows), k)]
    value = (1 / kept.double()).float().repeat_interleave(kept)
    return Graph(rowptr, col, value, (n, n))


def nearest(directions: Tensor, k: int, queries: Tensor | None = None) -> Tensor:
    """The k nearest of (n, d) directions to each of them, or to the rows ``queries`` (q,): ascending, (q, k) int64."""
    n, d = directions.shape
    if queries is None:
        queries = torch.arange(n, device=directions.device)
    found = [queries.new_empty(0, k)]
    size = max(1, CHUNK_ENTRIES // d)
    for block in torch.split(queries, max(1, min(BLOCK_ENTRIES // n, size))):
        these = directions[block].double()
        cosine = these.new_empty(len(block), n)
        for chunk, out in zip(torch.split(directions, size), torch.split(cosine, size, dim=1), strict=True):
            torch.mm(these, chunk.double().T, out=out)
        found.append(largest(cosine, k)[1].sort(dim=1).values)
    return torch.cat(found)


def _rounded_directions(features: Tensor, rows: Tensor) -> Tensor:
    """The given rows, none of them zero, with length one in steps of 2^-26: (n, d) int32."""
    d = features.shape[1]
    directions = torch.empty(len(rows), d, dtype=torch.int32, device=features.device)
    size = max(1, CHUNK_ENTRIES // d)
    for block, out in zip(torch.split(rows, size), torch.split(directions, size), strict=True):
        unit = features[block].double()
        # Dividing by the largest entry first keeps the squares of very large and very small entries in range.
        for order in (torch.inf, 2):
            unit /= torch.linalg.vector_norm(unit, ord=order, dim=1, keepdim=True)
        out.copy_(unit.mul_(STEPS).round_())
    return directions
