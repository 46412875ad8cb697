"""Item features fused by multi-head attention over modalities or over items, as the released code of CRANE does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crane.models.features import FeatureProjection
from crane_kernels.nn import ModalityAttention


class AttentionFusion(nn.Module):
    """Projected features, projected once more, attention along ``axis``, and the mean over the modalities.

    Args:
        features: raw features by modality, (I, d_m) each.
        dim: width d of all projections.
        heads: of the attention.
        axis: what attends to each other, see :func:`crane_kernels.modality_attention`.
        generator: draws the initial weights: Xavier-uniform ones, and zero biases.
        trainable: whether the raw features are parameters too.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],
        dim: int,
        heads: int,
        axis: str,
        generator: torch.Generator,
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.projection = FeatureProjection(features, dim, generator, trainable=trainable)
        self.w_token = nn.Parameter(torch.empty(len(features), dim, dim))
        self.b_token = nn.Parameter(torch.zeros(len(features), 1, dim))
        self.attention = ModalityAttention(dim, heads, axis=axis, device="meta").to_empty(device="cpu")
        for weight in (*self.w_token, self.attention.in_proj_weight, self.attention.out_proj.weight):
            nn.init.xavier_uniform_(weight, generator=generator)
        for name, bias in self.attention.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(bias)

    def forward(self) -> Tensor:
        """Fused features of all items: (I, d)."""
        tokens = torch.baddbmm(self.b_token, self.projection().transpose(0, 1), self.w_token)
        fused: Tensor = self.attention(tokens.transpose(0, 1))
        return fused
