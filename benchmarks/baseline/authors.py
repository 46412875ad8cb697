"""CRANE as its authors released it, and LightGCN, written as users of the MMRec toolbox write models.

Trainable raw features, projected twice; ``nn.MultiheadAttention`` over the two modalities of an item or, with its axes
swapped, over all items; the behaviour graph and the item graph as uncoalesced COO tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crane.data import Dataset

from .lightgcn import average_layers, bpr, normalized_adjacency, squared_norm


class CrossModalAttention(nn.Module):
    """Projections, attention with four heads, mean over the modalities."""

    def __init__(self, dim: int, *, over_items: bool) -> None:
        super().__init__()
        self.visual_proj = nn.Linear(dim, dim)
        self.textual_proj = nn.Linear(dim, dim)
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=not over_items)

    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        """(I, d) fused features."""
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)], dim=1)
        attended, _ = self.attention(tokens, tokens, tokens)
        return attended.mean(dim=1)


class LightGCN(nn.Module):
    """Behaviour embeddings alone."""

    def __init__(self, dataset: Dataset, dim: int = 64, layers: int = 2, l2: float = 1e-4) -> None:
        super().__init__()
        self.n_users, self.n_items, self.layers, self.l2 = dataset.n_users, dataset.n_items, layers, l2
        self.user_embedding = nn.Embedding(self.n_users, dim)
        self.item_id_embedding = nn.Embedding(self.n_items, dim)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_id_embedding.weight)
        self.norm_adj = normalized_adjacency(dataset.train.users, dataset.train.items, self.n_users, self.n_items)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Final user (U, d) and item (I, d) embeddings."""
        ego = torch.cat([self.user_embedding.weight, self.item_id_embedding.weight], dim=0)
        return average_layers(self.norm_adj, ego, self.layers, self.n_users)

    def calculate_loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR over the final embeddings and L2 over the initial ones."""
        user, item = self.forward()
        regularizer = squared_norm(
            self.user_embedding(users), self.item_id_embedding(positives), self.item_id_embedding(negatives)
        )
        return bpr(user[users], item[positives], item[negatives]) + self.l2 * regularizer


class CRANE(LightGCN):
    """Items are behaviour embeddings plus fused features, propagated over the item graph."""

    def __init__(
        self, dataset: Dataset, visual: Tensor, textual: Tensor, *, over_items: bool, dim: int = 64, k: int = 10
    ) -> None:
        super().__init__(dataset, dim)
        self.n_mm_layers = 1
        self.image_embedding = nn.Embedding.from_pretrained(visual, freeze=False)
        self.text_embedding = nn.Embedding.from_pretrained(textual, freeze=False)
        self.image_trs = nn.Linear(visual.shape[1], dim)
        self.text_trs = nn.Linear(textual.shape[1], dim)
        self.cross_modal_attention = CrossModalAttention(dim, over_items=over_items)
        self.mm_adj = knn_adjacency(visual, textual, k, image_weight=0.1)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Final user (U, d) and item (I, d) embeddings."""
        user, item = super().forward()
        image = self.image_trs(self.image_embedding.weight)
        text = self.text_trs(self.text_embedding.weight)
        fused = self.cross_modal_attention(image, text)
        for _ in range(self.n_mm_layers):
            fused = torch.sparse.mm(self.mm_adj, fused)
        return user, item + fused


def knn_adjacency(visual: Tensor, textual: Tensor, k: int, image_weight: float) -> Tensor:
    """The weighted sum of both modalities' k nearest items by cosine, an I x I COO tensor."""
    rows, columns, values = [], [], []
    for features, weight in ((visual, image_weight), (textual, 1 - image_weight)):
        unit = F.normalize(features, dim=1)
        nearest = torch.topk(unit @ unit.T, k, dim=-1).indices
        rows.append(torch.arange(len(unit)).repeat_interleave(k))
        columns.append(nearest.flatten())
        values.append(torch.full((len(unit) * k,), weight / k))
    indices = torch.stack([torch.cat(rows), torch.cat(columns)])
    return torch.sparse_coo_tensor(indices, torch.cat(values), (len(visual),) * 2, check_invariants=False)
