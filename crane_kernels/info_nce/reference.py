"""The meaning of ``info_nce`` in plain PyTorch, in blocks of rows that stay in the processor's cache.

Up to ``KEPT_ROWS`` rows the n^2 logits are kept for backward (64 MiB in float32); above that each block is computed
again in backward, so that memory grows as n * ``BLOCK_ROWS``. Half precision is computed in float32: the loss is the
difference of numbers that may be a hundred times as large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels.recompute import recomputed

BLOCK_ROWS = 256
KEPT_ROWS = 4096


def info_nce(a: Tensor, b: Tensor, temperature: float, ids: Tensor | None, symmetric: bool) -> Tensor:
    """Mean over rows i of -log softmax_j(cos(a_i, b_j) / temperature) at j = i: scalar."""
    dtype = a.dtype
    a, b = _unit(a), _unit(b)
    loss = _one_direction(a / temperature, b, ids)
    if symmetric:
        loss = (loss + _one_direction(b / temperature, a, ids)) / 2
    return loss.to(dtype)


def _one_direction(a: Tensor, b: Tensor, ids: Tensor | None) -> Tensor:
    starts = range(0, a.shape[0], BLOCK_ROWS)
    total = [_log_sum_exp(a[start : start + BLOCK_ROWS], b, ids, start) for start in starts]
    return (torch.cat(total) - (a * b).sum(1)).mean()


def _unit(x: Tensor) -> Tensor:
    """Rows of length one, in float32 at least; a zero row stays zero and gets a zero gradient.

    Scaled before, so that no square leaves the range of numbers; the result does not depend on that factor.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.shape[1] > 0:
        largest = x.detach().abs().amax(1, keepdim=True)
        x = x / largest.masked_fill(largest == 0, 1)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = x / norm.masked_fill(norm == 0, torch.inf)
    return unit


def _log_sum_exp(block: Tensor, b: Tensor, ids: Tensor | None, start: int) -> Tensor:
    if b.shape[0] <= KEPT_ROWS:
        return _row_log_sum_exp(block, b, ids, start)
    return recomputed(_row_log_sum_exp, block, b, ids, start)


def _row_log_sum_exp(block: Tensor, b: Tensor, ids: Tensor | None, start: int) -> Tensor:
    logits = block @ b.T
    if ids is not None:
        own = ids[start : start + block.shape[0]]
        others = own[:, None] == ids
        others.diagonal(start).fill_(False)
        logits = logits.masked_fill(others, -torch.inf)
    return torch.logsumexp(logits, dim=1)
