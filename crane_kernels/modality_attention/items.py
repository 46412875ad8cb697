"""Attention across all rows, within each modality: the items axis. No N x N matrix in either direction.

PyTorch's fused attention serves what it can. It has none in float64 on a GPU, none for no rows and no forward-mode
derivative: there blocks of queries go one after the other, and backward computes each again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from crane_kernels.recompute import recomputed

BLOCK_ENTRIES = 2**24
# PyTorch's own fallback forms the whole matrix: without it here, a call that no kernel can serve is an error.
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
ALIGNMENT = 8  # of a head's width, for every fused kernel


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax of the scaled scores of each query with all keys, times the values: all (batch, heads, N, width)."""
    if _fused_serves(query):
        return _fused(query, key, value)
    return in_blocks(query, key, value)


def _fused_serves(query: Tensor) -> bool:
    if query.shape[2] == 0 or forward_ad._current_level >= 0:
        return False
    return query.device.type == "cpu" or query.dtype != torch.float64


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    width = query.shape[-1]
    if query.device.type != "cpu" and width % ALIGNMENT:
        query, key, value = (F.pad(x, (0, -width % ALIGNMENT)) for x in (query, key, value))
    with sdpa_kernel(list(FUSED)):
        return F.scaled_dot_product_attention(query, key, value, scale=1 / math.sqrt(width))[..., :width]


def in_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """:func:`attention` by blocks of queries."""
    batch, heads, n, _ = query.shape
    rows = max(1, BLOCK_ENTRIES // max(1, batch * heads * n))
    blocks = [recomputed(_block, part, key, value) for part in torch.split(query, rows, dim=2)]
    return torch.cat(blocks, dim=2)


def _block(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return torch.softmax(scores, dim=-1) @ value
