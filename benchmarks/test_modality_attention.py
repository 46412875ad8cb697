"""Attention over two modality tokens an item and their mean, against PyTorch's multi-head attention."""

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


def multihead_attention(tokens: Tensor, *weights: Tensor, need_weights: bool) -> Tensor:
    """``nn.MultiheadAttention(batch_first=True)`` as models call it, and the mean over tokens."""
    across = tokens.transpose(0, 1)
    in_weight, in_bias, out_weight, out_bias = weights
    shared: dict[str, Any] = {"bias_k": None, "bias_v": None, "add_zero_attn": False, "dropout_p": 0.0}
    output, _ = F.multi_head_attention_forward(
        across, across, across, DIM, HEADS, in_weight, in_bias, **shared, out_proj_weight=out_weight,
        out_proj_bias=out_bias, need_weights=need_weights,
    )  # fmt: skip
    return output.mean(0)


def work(n: int, backward: bool) -> Work:
    """Tokens, output and, backward, their gradients; d x d products a row as the factored form has them."""
    products = 2 * MODALITIES + (6 * MODALITIES - 1) * backward
    rows = MODALITIES + 1 + (2 * MODALITIES + 1) * backward
    return Work(4 * n * rows * DIM, 0, 2 * n * products * DIM**2)


@pytest.mark.parametrize("case", peers.CASES)
def test_modality_attention(
    case: str, scale: str, measure: Measure, device: str, requested: str | None, quick: bool
) -> None:
    n = scales.SIZES[scale].items
    torch.manual_seed(0)
    module = nn.MultiheadAttention(DIM, HEADS, batch_first=True).to(device)
    weights = (module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias)
    inputs = torch.randn(n, MODALITIES, DIM).to(device).requires_grad_(), *weights

    def ours(*tensors: Tensor) -> Tensor:
        return modality_attention(*tensors, HEADS, implementation=requested)

    def compiled(*tensors: Tensor) -> Tensor:
        return peers.compiled(reference.modality_attention)(*tensors, HEADS)

    others: dict[str, peers.Function | str] = {
        "nn.MultiheadAttention": partial(multihead_attention, need_weights=True),
        "nn.MultiheadAttention, no weights": partial(multihead_attention, need_weights=False),
        peers.COMPILED: peers.TOO_LONG if quick else compiled,
    }
    measure(
        peers.run(ours, inputs, case),
        {name: peers.run(other, inputs, case) for name, other in others.items()},
        case=case,
        size=n,
        unit="rows",
        work=work(n, case == peers.BACKWARD),
    )
