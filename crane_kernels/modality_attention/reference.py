"""The meaning of ``modality_attention`` in plain PyTorch: O(N M (d + heads M)) memory, O(N M d) on the items axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from crane_kernels.modality_attention import items

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def modality_attention(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
    axis: str = "modalities",
    attend: Attend = items.attention,
) -> Tensor:
    """Attention over the tokens of each row or over the rows, then the mean over tokens: (N, M, d) -> (N, d).

    The mean is linear, so it is taken before the output projection and, over the tokens of a row, over the attention
    weights. ``attend`` is the attention over rows, of (M, heads, N, width) queries, keys and values.
    """
    n, modalities, d = tokens.shape
    width = d // num_heads
    projected = F.linear(tokens, in_proj_weight, in_proj_bias).view(n, modalities, 3, num_heads, width)
    query, key, value = projected.unbind(2)
    if axis == "items":
        across = attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))
        context = across.mean(0).transpose(0, 1).reshape(n, d)
    else:
        scores = torch.einsum("nqhe,nkhe->nhqk", query, key) / math.sqrt(width)
        weights = torch.softmax(scores, dim=-1).mean(2)
        context = torch.einsum("nhk,nkhe->nhe", weights, value).reshape(n, d)
    return F.linear(context, out_proj_weight, out_proj_bias)
