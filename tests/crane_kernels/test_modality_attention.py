"""Modality attention against ``torch.nn.MultiheadAttention``."""

import pytest
import torch
from torch import nn

from crane_kernels import modality_attention


def module(d, heads, bias=True):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(d, heads, bias=bias, batch_first=True, dtype=torch.float64)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def weights(attention):
    return attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias


@pytest.mark.parametrize(("d", "heads"), [(8, 1), (8, 4), (6, 3), (5, 5)])
@pytest.mark.parametrize("modalities", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 13])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_multihead_attention_then_mean(n, modalities, d, heads, bias):
    attention = module(d, heads, bias)
    tokens = torch.randn(n, modalities, d, dtype=torch.float64, requires_grad=True)
    leaves = [tokens, *attention.parameters()]
    expected = attention(tokens, tokens, tokens)[0].mean(1)
    found = modality_attention(tokens, *weights(attention), heads)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad(found, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients():
    leaves = [torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)]
    leaves += [parameter.detach().requires_grad_() for parameter in weights(module(4, 2))]
    assert torch.autograd.gradcheck(lambda *t: modality_attention(*t, 2), leaves)


def test_no_rows():
    assert modality_attention(torch.zeros(0, 2, 4).double(), *weights(module(4, 2)), 2).shape == (0, 4)


def test_more_rows_than_65535():
    attention = module(4, 2).float()
    tokens = torch.randn(70_000, 2, 4)
    with torch.no_grad():
        found = modality_attention(tokens, *weights(attention), 2)
        tail = modality_attention(tokens[-5:], *weights(attention), 2)
    torch.testing.assert_close(found[-5:], tail)


def test_large_scores_stay_finite():
    tokens = torch.full((2, 3, 4), 1e4)
    with torch.no_grad():
        assert bool(modality_attention(tokens, *weights(module(4, 2).float()), 2).isfinite().all())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tokens": torch.zeros(3, 4)}, ValueError, "tokens: .* expected three dimensions"),
        ({"tokens": torch.zeros(3, 0, 4)}, ValueError, "tokens: .* at least one token"),
        ({"tokens": None}, TypeError, "tokens: found NoneType"),
        ({"in_proj_weight": torch.zeros(4, 4)}, ValueError, r"in_proj_weight: .* expected \(12, 4\)"),
        ({"in_proj_bias": torch.zeros(4)}, ValueError, r"in_proj_bias: .* expected \(12,\)"),
        ({"out_proj_weight": torch.zeros(4, 4).double()}, TypeError, "out_proj_weight: found dtype torch.float64"),
        ({"out_proj_bias": torch.zeros(3)}, ValueError, r"out_proj_bias: .* expected \(4,\)"),
        ({"num_heads": 3}, ValueError, "num_heads: found 3, expected a divisor of the width 4"),
        ({"num_heads": 0}, ValueError, "num_heads: found 0"),
        ({"num_heads": True}, TypeError, "num_heads: found True"),
    ],
)
def test_refusals(change, error, text):
    arguments = {
        "tokens": torch.zeros(3, 2, 4),
        "in_proj_weight": torch.zeros(12, 4),
        "in_proj_bias": torch.zeros(12),
        "out_proj_weight": torch.zeros(4, 4),
        "out_proj_bias": torch.zeros(4),
        "num_heads": 2,
    }
    with pytest.raises(error, match=text):
        modality_attention(**{**arguments, **change})
