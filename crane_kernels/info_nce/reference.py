"""The meaning of ``info_nce`` in plain PyTorch, in blocks of rows that stay in the processor's cache.

Up to ``KEPT_ROWS`` rows the n^2 logits are kept for backward (64 MiB in float32); above that each block is computed
again in backward, so that memory grows as n * ``BLOCK_ROWS``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_ROWS = 256
KEPT_ROWS = 4096


def info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Mean over rows i of -log softmax_j(cos(a_i, b_j) / temperature) at j = i: scalar."""
    a, b = _unit(a) / temperature, _unit(b)
    total = [_log_sum_exp(block, b) for block in torch.split(a, BLOCK_ROWS)]
    return (torch.cat(total) - (a * b).sum(1)).mean()


def _unit(x: Tensor) -> Tensor:
    """Rows of length one; a zero row stays zero and gets a zero gradient."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = x / norm.masked_fill(norm == 0, torch.inf)
    return unit


def _log_sum_exp(block: Tensor, b: Tensor) -> Tensor:
    if b.shape[0] <= KEPT_ROWS:
        return _row_log_sum_exp(block, b)
    result: Tensor = checkpoint(_row_log_sum_exp, block, b, use_reentrant=False, preserve_rng_state=False)
    return result


def _row_log_sum_exp(block: Tensor, b: Tensor) -> Tensor:
    return torch.logsumexp(block @ b.T, dim=1)
