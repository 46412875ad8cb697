"""``nn.MultiheadAttention`` over a handful of tokens a row, in a module by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_TOKENS = 8


def refuses_module(module: nn.MultiheadAttention) -> str | None:
    """What the module computes that nothing here does, whatever it is given; ``None`` when there is nothing."""
    if type(module) is not nn.MultiheadAttention:
        return "its class is derived from nn.MultiheadAttention"
    if not module._qkv_same_embed_dim:
        return "its keys and values have widths of their own"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys of its own (add_bias_kv or add_zero_attn)"
    if "forward" in vars(module):
        return "the instance has a forward of its own"
    return None


def refuses_state(module: nn.MultiheadAttention, tokens: Tensor) -> str | None:
    """Why torch's own code must run for ``tokens`` now; ``None`` when there is no reason."""
    if module.training and module.dropout:
        return "dropout is on"
    if tokens.dtype != module.in_proj_weight.dtype or tokens.device != module.in_proj_weight.device:
        return "the tokens have another dtype or device than the weights"
    if tokens.is_meta:
        return "the meta device holds no numbers"
    if torch.is_autocast_enabled(tokens.device.type):
        return "autocast is on"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is at work"
    return None


def forward(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward``: attention of few tokens to themselves in few large operations."""
    plain = key_padding_mask is None and attn_mask is None and not is_causal
    plain = plain and (average_attn_weights or not need_weights)
    if plain and query is key is value and _few(self, query) and refuses_state(self, query) is None:
        return _attend(self, query, need_weights)
    return nn.MultiheadAttention.forward(
        self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
    )


def _few(module: nn.MultiheadAttention, x: Any) -> bool:
    """Whether ``x`` is a dense batch of at least as many rows as each has tokens, of which there are few."""
    if not isinstance(x, Tensor) or x.is_nested or x.layout != torch.strided or x.dim() != 3:
        return False
    rows, tokens = x.shape[:2] if module.batch_first else (x.shape[1], x.shape[0])
    return 0 < tokens <= min(MOST_TOKENS, rows) and x.shape[2] == module.embed_dim


def _attend(module: nn.MultiheadAttention, x: Tensor, need_weights: bool) -> tuple[Tensor, Tensor | None]:
    tokens = x if module.batch_first else x.transpose(0, 1)
    n, m, d = tokens.shape
    projected = F.linear(tokens, module.in_proj_weight, module.in_proj_bias)
    query, key, value = projected.view(n, m, 3, module.num_heads, module.head_dim).unbind(2)
    scores = torch.einsum("nqhe,nkhe->nhqk", query, key) / math.sqrt(module.head_dim)
    weights = torch.softmax(scores, dim=-1)
    context = torch.einsum("nhqk,nkhe->nqhe", weights, value).reshape(n, m, d)
    result = F.linear(context, module.out_proj.weight, module.out_proj.bias)
    return result if module.batch_first else result.transpose(0, 1), weights.mean(1) if need_weights else None
