"""Models as users of the MMRec toolbox write them: a toolbox's base class, torch.sparse.mm over COO tensors."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_USERS, N_ITEMS = 40, 30


class GeneralRecommender(nn.Module):
    """What the toolbox's models derive from."""

    def pre_epoch_processing(self) -> None:
        pass

    def calculate_loss(self, interaction: Tensor) -> Tensor:
        raise NotImplementedError

    def full_sort_predict(self, interaction: Tensor) -> Tensor:
        raise NotImplementedError


class LightGCN(GeneralRecommender):
    def __init__(
        self, pairs: np.ndarray, dim: int = 16, n_layers: int = 2, sizes: tuple[int, int] = (N_USERS, N_ITEMS)
    ) -> None:
        super().__init__()
        (self.n_users, self.n_items), self.n_layers = sizes, n_layers
        self.user_embedding = nn.Embedding(self.n_users, dim)
        self.item_id_embedding = nn.Embedding(self.n_items, dim)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_id_embedding.weight)
        self.norm_adj = self.get_norm_adj_mat(pairs)

    def get_norm_adj_mat(self, pairs: np.ndarray) -> Tensor:
        n = self.n_users + self.n_items
        users, items = pairs
        inter = sp.coo_matrix((np.ones(len(users)), (users, items + self.n_users)), shape=(n, n))
        adjacency = inter + inter.T
        degrees = np.asarray(adjacency.sum(axis=1)).flatten() + 1e-7
        scale = sp.diags(degrees**-0.5)
        laplacian = sp.coo_matrix(scale @ adjacency @ scale)
        indices = torch.LongTensor(np.array([laplacian.row, laplacian.col]))
        return torch.sparse_coo_tensor(indices, torch.FloatTensor(laplacian.data), (n, n), check_invariants=False)

    def forward(self, adj: Tensor) -> tuple[Tensor, Tensor]:
        ego = torch.cat([self.user_embedding.weight, self.item_id_embedding.weight], dim=0)
        layers = [ego]
        for _ in range(self.n_layers):
            ego = torch.sparse.mm(adj, ego)
            layers += [ego]
        users, items = torch.split(torch.stack(layers, dim=1).mean(dim=1), [self.n_users, self.n_items], dim=0)
        return users, items

    def calculate_loss(self, interaction: Tensor) -> Tensor:
        users, positives, negatives = interaction
        user, item = self.forward(self.norm_adj)
        scores = (user[users] * item[positives]).sum(1) - (user[users] * item[negatives]).sum(1)
        return -F.logsigmoid(scores).mean()

    def full_sort_predict(self, interaction: Tensor) -> Tensor:
        user, item = self.forward(self.norm_adj)
        return user[interaction] @ item.T


class CrossModalAttention(nn.Module):
    """Attention over the modalities of an item, or (``swapped``) over all items, each modality for itself."""

    def __init__(self, visual_dim: int, textual_dim: int, dim: int, *, swapped: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.visual_proj = nn.Linear(visual_dim, dim)
        self.textual_proj = nn.Linear(textual_dim, dim)
        self.attention = nn.MultiheadAttention(dim, 4, dropout=dropout, batch_first=not swapped)

    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)], dim=1)
        attended, _ = self.attention(tokens, tokens, tokens)
        return attended.mean(dim=1)


class CRANE(LightGCN):
    """The authors' released form: behaviour graph, fused features over the item graph, their sum."""

    def __init__(
        self,
        pairs: np.ndarray,
        visual: Tensor,
        textual: Tensor,
        *,
        swapped: bool,
        dim: int = 16,
        dropout: float = 0.0,
        n_users: int = N_USERS,
    ) -> None:
        super().__init__(pairs, dim, sizes=(n_users, len(visual)))
        self.n_mm_layers = 1
        self.image_embedding = nn.Embedding.from_pretrained(visual, freeze=False)
        self.text_embedding = nn.Embedding.from_pretrained(textual, freeze=False)
        self.image_trs = nn.Linear(visual.shape[1], dim)
        self.text_trs = nn.Linear(textual.shape[1], dim)
        self.cross_modal_attention = CrossModalAttention(dim, dim, dim, swapped=swapped, dropout=dropout)
        self.mm_adj = self.get_knn_adj_mat(textual.detach())

    def get_knn_adj_mat(self, features: Tensor, k: int = 5) -> Tensor:
        unit = F.normalize(features, dim=1)
        nearest = torch.topk(unit @ unit.T, k, dim=-1).indices
        rows = torch.arange(len(features)).repeat_interleave(k)
        values = torch.full((len(rows),), 1 / k)
        return torch.sparse_coo_tensor(
            torch.stack([rows, nearest.flatten()]), values, (len(features),) * 2, check_invariants=False
        )

    def forward(self, adj: Tensor) -> tuple[Tensor, Tensor]:
        users, items = super().forward(adj)
        image = self.image_trs(self.image_embedding.weight)
        text = self.text_trs(self.text_embedding.weight)
        fused = self.cross_modal_attention(image, text)
        for _ in range(self.n_mm_layers):
            fused = torch.sparse.mm(self.mm_adj, fused)
        return users, items + fused


def pairs(seed: int = 0, per_user: int = 6) -> np.ndarray:
    """(2, E) distinct pairs of users and items."""
    generator = np.random.default_rng(seed)
    items = [generator.choice(N_ITEMS, per_user, replace=False) for _ in range(N_USERS)]
    return np.stack([np.repeat(np.arange(N_USERS), per_user), np.concatenate(items)])


def authors_model(*, swapped: bool, dropout: float = 0.0, seed: int = 0) -> CRANE:
    """The authors' model on random data."""
    torch.manual_seed(seed)
    return CRANE(pairs(), torch.randn(N_ITEMS, 24), torch.randn(N_ITEMS, 12), swapped=swapped, dropout=dropout)


def batch(step: int, size: int = 64) -> Tensor:
    """(3, B) users, positives, negatives."""
    generator = torch.Generator().manual_seed(step)
    return torch.stack([torch.randint(n, (size,), generator=generator) for n in (N_USERS, N_ITEMS, N_ITEMS)])
