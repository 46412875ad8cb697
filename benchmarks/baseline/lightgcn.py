"""LightGCN over an uncoalesced COO adjacency."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crane.data import Dataset
from crane.models.lightgcn import LightGCN as Ours


class LightGCN(nn.Module):
    """The mathematics and the initial weights of ``ours``."""

    def __init__(self, dataset: Dataset, ours: Ours) -> None:
        super().__init__()
        self.n_users, self.n_items = dataset.n_users, dataset.n_items
        self.layers, self.l2 = ours.config.layers, ours.config.l2
        self.user_embedding = embedding(ours.user_embedding)
        self.item_embedding = embedding(ours.item_embedding)
        self.adjacency = normalized_adjacency(dataset.train.users, dataset.train.items, self.n_users, self.n_items)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Final user (U, d) and item (I, d) embeddings."""
        ego = torch.cat([self.user_embedding.weight, self.item_embedding.weight], dim=0)
        return average_layers(self.adjacency, ego, self.layers, self.n_users)

    def begin_epoch(self) -> None:
        """Nothing changes from epoch to epoch."""

    def calculate_loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR over the final embeddings and L2 over the initial ones."""
        user, item = self.forward()
        regularizer = squared_norm(
            self.user_embedding(users), self.item_embedding(positives), self.item_embedding(negatives)
        )
        return bpr(user[users], item[positives], item[negatives]) + self.l2 * regularizer


def embedding(weight: Tensor) -> nn.Embedding:
    """A trainable table that starts as a copy of ``weight``."""
    return nn.Embedding.from_pretrained(weight.detach().clone(), freeze=False)


def normalized_adjacency(users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> Tensor:
    """D^{-1/2} A D^{-1/2} over users and items as a COO tensor, (U + I) x (U + I)."""
    n = n_users + n_items
    rows = np.concatenate([users, items + n_users])
    cols = np.concatenate([items + n_users, users])
    adjacency = sp.coo_matrix((np.ones(len(rows)), (rows, cols)), shape=(n, n))
    degrees = np.asarray(adjacency.sum(axis=1)).flatten()
    scale = sp.diags(np.where(degrees > 0, degrees, 1.0) ** -0.5)
    normalized = sp.coo_matrix(scale @ adjacency @ scale)
    indices = torch.from_numpy(np.stack([normalized.row, normalized.col]).astype(np.int64))
    values = torch.from_numpy(normalized.data.astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, (n, n), check_invariants=False)


def average_layers(adjacency: Tensor, ego: Tensor, layers: int, n_users: int) -> tuple[Tensor, Tensor]:
    """Mean of x, A x, ..., A^L x, split into users and items."""
    outputs = [ego]
    for _ in range(layers):
        ego = torch.sparse.mm(adjacency, ego)
        outputs.append(ego)
    mean = torch.stack(outputs, dim=1).mean(dim=1)
    user, item = torch.split(mean, [n_users, len(mean) - n_users])
    return user, item


def bpr(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking, mean over the batch."""
    difference = (user * positive).sum(dim=1) - (user * negative).sum(dim=1)
    return -F.logsigmoid(difference).mean()


def squared_norm(*rows: Tensor) -> Tensor:
    """Half the summed squares of the rows, divided by the batch size."""
    return sum((x**2).sum() for x in rows) / (2 * len(rows[0]))
