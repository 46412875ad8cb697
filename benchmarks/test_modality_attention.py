"""Attention over two modality tokens an item, or over all items, against PyTorch's multi-head attention.

``nn.MultiheadAttention`` without weights is PyTorch's ``scaled_dot_product_attention`` (SDPA) between projections.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import peers
import pytest
import scales
import torch
import torch.nn.functional as F
from machine import Work
from measuring import Measure
from torch import Tensor, nn

from crane_kernels import modality_attention
from crane_kernels.modality_attention import reference

OPERATION = "modality_attention"
DIM, HEADS, MODALITIES = 64, 4, 2
ITEMS = 2048  # of attention over items, whose cost grows with their square
MULTIHEAD, SDPA = "nn.MultiheadAttention", "nn.MultiheadAttention, no weights (SDPA)"


def multihead_attention(tokens: Tensor, *weights: Tensor, need_weights: bool, over_items: bool = False) -> Tensor:
    """``nn.MultiheadAttention`` over either axis as models call it, and the mean over tokens."""
    across = tokens if over_items else tokens.transpose(0, 1)
    in_weight, in_bias, out_weight, out_bias = weights
    shared: dict[str, Any] = {"bias_k": None, "bias_v": None, "add_zero_attn": False, "dropout_p": 0.0}
    output, _ = F.multi_head_attention_forward(
        across, across, across, DIM, HEADS, in_weight, in_bias, **shared, out_proj_weight=out_weight,
        out_proj_bias=out_bias, need_weights=need_weights,
    )  # fmt: skip
    return output.mean(1 if over_items else 0)


def tokens_and_weights(n: int, device: str) -> tuple[Tensor, ...]:
    """Tokens and the four parameters of an attention, all of which get gradients."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(DIM, HEADS).to(device)
    weights = module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias
    return torch.randn(n, MODALITIES, DIM).to(device).requires_grad_(), *weights


def work(n: int, backward: bool) -> Work:
    """Tokens, output and, backward, their gradients; d x d products a row as the factored form has them."""
    products = 2 * MODALITIES + (6 * MODALITIES - 1) * backward
    rows = MODALITIES + 1 + (2 * MODALITIES + 1) * backward
    return Work(4 * n * rows * DIM, 0, 2 * n * products * DIM**2)


@pytest.mark.parametrize("case", peers.CASES)
def test_modality_attention(
    case: str, scale: str, measure: Measure, device: str, requested: str | None, not_compiled: str | None
) -> None:
    n = scales.SIZES[scale].items
    inputs = tokens_and_weights(n, device)

    def ours(*tensors: Tensor) -> Tensor:
        return modality_attention(*tensors, HEADS, implementation=requested)

    def compiled(*tensors: Tensor) -> Tensor:
        return peers.compiled(reference.modality_attention)(*tensors, HEADS)

    others: dict[str, peers.Function | str] = {
        MULTIHEAD: partial(multihead_attention, need_weights=True),
        SDPA: partial(multihead_attention, need_weights=False),
        peers.COMPILED: not_compiled or compiled,
    }
    measure(
        peers.run(ours, inputs, case),
        {name: peers.run(other, inputs, case) for name, other in others.items()},
        case=case,
        size=n,
        unit="rows",
        work=work(n, case == peers.BACKWARD),
    )


@pytest.mark.parametrize("case", peers.CASES)
def test_attention_over_items(case: str, measure: Measure, device: str, requested: str | None, quick: bool) -> None:
    if quick:
        pytest.skip(peers.TOO_LONG)
    inputs = tokens_and_weights(ITEMS, device)

    def ours(*tensors: Tensor) -> Tensor:
        return modality_attention(*tensors, HEADS, "items", implementation=requested)

    others = {
        name: partial(multihead_attention, need_weights=name == MULTIHEAD, over_items=True)
        for name in (MULTIHEAD, SDPA)
    }
    measure(
        peers.run(ours, inputs, case),
        {name: peers.run(other, inputs, case) for name, other in others.items()},
        case=f"over items, {case}",
        scale=f"{ITEMS:,} rows",
        size=ITEMS,
        unit="rows",
    )
