"""The meaning of ``knn_graph`` in plain PyTorch, in blocks of rows: memory O(I * (d + k) + block), never I x I.

Cosines are computed exactly. Rows of length one are rounded to multiples of 2^-26; a product of two such numbers is a
multiple of 2^-52 and no partial sum exceeds 2 (Cauchy-Schwarz), so float64 adds them without rounding, in any order.
Equal rows therefore have equal cosines, whatever the block, the number of threads or the machine, and ties are ties.
The rounding of the rows moves a cosine by about 1e-8, less than float32 arithmetic would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.selection import largest

BLOCK_ENTRIES = 2**21
_STEPS = 2.0**26


@torch.no_grad()
def knn_graph(features: Tensor, k: int) -> Graph:
    """Row-normalised graph of the k rows of the highest cosine: (I, d) -> Graph (I, I)."""
    n = features.shape[0]
    unit = _rounded_unit(features)
    zero = ~unit.any(1)
    k = min(k, n - int(zero.sum()))
    kept = torch.where(zero, 1, k)
    rowptr = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    col = torch.empty(int(rowptr[-1]), dtype=torch.int64, device=features.device)
    col[rowptr[:-1][zero]] = zero.nonzero()[:, 0]
    rows = (~zero).nonzero()[:, 0]
    for block in torch.split(rows, max(1, BLOCK_ENTRIES // n)) if k else ():
        cosine = (unit[block] @ unit.T).masked_fill_(zero, -torch.inf)
        neighbours = largest(cosine, k)[1].sort(dim=1).values
        col[rowptr[block, None] + torch.arange(k, device=col.device)] = neighbours
    value = (1 / kept.double()).float().repeat_interleave(kept)
    return Graph(rowptr, col, value, (n, n))


def _rounded_unit(features: Tensor) -> Tensor:
    """Rows of length one in multiples of 2^-26 as float64; a zero row stays zero."""
    unit = features.double()
    # Dividing by the largest entry first keeps the squares of very large and very small entries in range.
    for order in (torch.inf, 2):
        norm = torch.linalg.vector_norm(unit, ord=order, dim=1, keepdim=True)
        unit = unit / norm.masked_fill(norm == 0, 1)
    return unit.mul_(_STEPS).round_().div_(_STEPS)
