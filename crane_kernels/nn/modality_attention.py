"""``modality_attention`` as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crane_kernels import checks
from crane_kernels.modality_attention import AXES, modality_attention


class ModalityAttention(nn.Module):
    """``torch.nn.MultiheadAttention`` over M tokens a row, then their mean: (N, M, d) -> (N, d).

    Parameters, their initialisation and the state dict are those of
    ``nn.MultiheadAttention(embed_dim, num_heads, bias=bias, batch_first=True)``: ``in_proj_weight``, ``in_proj_bias``,
    ``out_proj.weight``, ``out_proj.bias``.

    Args:
        embed_dim: width d of a token.
        num_heads: number of heads, a divisor of ``embed_dim``.
        bias: whether the projections have biases.
        axis: what attends to each other, see :func:`crane_kernels.modality_attention`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: ``embed_dim`` or ``num_heads`` is no integer, or ``bias`` no bool.
        ValueError: either is less than 1, ``num_heads`` does not divide ``embed_dim``, or ``axis`` is unknown.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        axis: str = "modalities",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim = checks.integer("embed_dim", embed_dim, 1)
        num_heads = checks.integer("num_heads", num_heads, 1)
        checks.instance("bias", bias, bool)
        if embed_dim % num_heads:
            raise ValueError(f"num_heads: found {num_heads}, expected a divisor of embed_dim, {embed_dim}")
        if axis not in AXES:
            raise ValueError(f"axis: found {axis!r}, expected one of {', '.join(AXES)}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.axis = axis
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim, device=device, dtype=dtype)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform input projection, zero biases; the output projection keeps ``nn.Linear``'s weights."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, M, d) -> (N, d)."""
        return modality_attention(
            tokens,
            self.in_proj_weight,
            self.in_proj_bias,
            self.out_proj.weight,
            self.out_proj.bias,
            self.num_heads,
            self.axis,
        )

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, bias={self.in_proj_bias is not None}, axis={self.axis!r}"
