"""CRANE with recursive attention in its direct form, over uncoalesced COO graphs."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crane import models
from crane.data import Dataset
from crane_kernels import Graph

from .lightgcn import average_layers, bpr, embedding, normalized_adjacency, squared_norm


class CRANE(nn.Module):
    """The mathematics and the initial weights of ``ours``, with every part of the model on."""

    def __init__(self, dataset: Dataset, ours: models.CRANE) -> None:
        super().__init__()
        self.config = ours.config
        self.n_users, self.n_items = dataset.n_users, dataset.n_items
        self.users, self.items = dataset.train.users, dataset.train.items
        self.user_embedding = embedding(ours.user_embedding)
        self.item_embedding = embedding(ours.item_embedding)
        self.refinement = Refinement(dataset, ours)
        self.interactions = coo(ours.interactions)
        self.degrees = torch.bincount(torch.from_numpy(self.users), minlength=self.n_users)
        assert ours.item_graph is not None
        self.item_graph = coo(ours.item_graph)
        self.edge_weights = self._edge_weights()
        self.keep_edges(np.arange(len(self.users)))

    def begin_epoch(self) -> None:
        """Draw the edges of the epoch's behaviour graph, as FREEDOM does."""
        count = round(self.config.edge_keep * len(self.users))
        self.keep_edges(torch.multinomial(self.edge_weights, count).numpy())

    def keep_edges(self, edges: np.ndarray) -> None:
        """Make the behaviour graph of these training pairs."""
        self.adjacency = normalized_adjacency(self.users[edges], self.items[edges], self.n_users, self.n_items)

    def calculate_loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR, InfoNCE between the views, and L2 over the initial embeddings."""
        config = self.config
        ego = torch.cat([self.user_embedding.weight, self.item_embedding.weight], dim=0)
        user_behaviour, item_behaviour = average_layers(self.adjacency, ego, config.layers, self.n_users)
        item_semantic = torch.sparse.mm(self.item_graph, self.item_embedding.weight)
        user_semantic = self._profile(item_semantic, users, positives)
        features = F.normalize(self.refinement.project(), dim=-1)
        profiles = [self._profile(feature, users, positives) for feature in features]
        refined = self.refinement([torch.cat(pair, dim=0) for pair in zip(profiles, features, strict=True)])
        user_refined, item_refined = torch.split(refined, [self.n_users, self.n_items])

        share = math.sqrt(config.feature_weight)
        user = torch.cat([user_behaviour + config.profile_weight * user_semantic, share * user_refined], dim=1)
        item = torch.cat([item_behaviour + item_semantic, share * item_refined], dim=1)
        contrast = info_nce(item_behaviour, item_semantic, positives.unique(), config.temperature)
        contrast = contrast + info_nce(user_behaviour, user_semantic, users.unique(), config.temperature)
        regularizer = squared_norm(
            self.user_embedding(users), self.item_embedding(positives), self.item_embedding(negatives)
        )
        loss = bpr(user[users], item[positives], item[negatives])
        return loss + config.contrastive_weight * contrast + config.l2 * regularizer

    def _profile(self, items: Tensor, users: Tensor, positives: Tensor) -> Tensor:
        """(U, d) mean over each user's training items without the pairs of the batch."""
        total = torch.sparse.mm(self.interactions, items).index_add(0, users, -items[positives])
        count = self.degrees - torch.bincount(users, minlength=self.n_users)
        return total / count.clamp(min=1).unsqueeze(1)

    def _edge_weights(self) -> Tensor:
        item_degrees = np.bincount(self.items, minlength=self.n_items)
        user_degrees = np.bincount(self.users, minlength=self.n_users)
        return torch.from_numpy(1 / np.sqrt(user_degrees[self.users] * item_degrees[self.items]))


class Refinement(nn.Module):
    """Projection, recursive cross-modal attention in its direct form, and fusion of the modalities."""

    def __init__(self, dataset: Dataset, ours: models.CRANE) -> None:
        super().__init__()
        theirs = ours.refinement
        self.raw = [torch.from_numpy(matrix) for matrix in dataset.features.values()]
        self.recursions = theirs.recursions
        self.projection = nn.ParameterDict({name: copy(p) for name, p in theirs.projection.named_parameters()})
        self.w_joint, self.b_joint = copy(theirs.w_joint), copy(theirs.b_joint)
        self.w_attend, self.w_out = copy(theirs.w_attend), copy(theirs.w_out)
        self.w_refined, self.b_refined = copy(theirs.w_refined), copy(theirs.b_refined)

    def project(self) -> Tensor:
        """(M, I, d) projected raw features."""
        projected = [x @ self.projection[f"weight_{m}"] + self.projection[f"bias_{m}"] for m, x in enumerate(self.raw)]
        return torch.stack(projected)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Refined features (N, d), rows of length one, of the modalities' (N, d) each."""
        scale = 1 / math.sqrt(features[0].numel())
        for _ in range(self.recursions):
            joint = torch.cat(features, dim=1) @ self.w_joint + self.b_joint
            refined = []
            for m, x in enumerate(features):
                correlation = torch.tanh(x.T @ joint * scale)
                attended = torch.relu(x @ self.w_attend[m] @ correlation)
                refined.append(x + attended @ self.w_out[m])
            features = refined
        return F.normalize(torch.cat(features, dim=1) @ self.w_refined + self.b_refined, dim=1)


def copy(parameter: Tensor) -> nn.Parameter:
    """A parameter that starts as a copy."""
    return nn.Parameter(parameter.detach().clone())


def coo(graph: Graph) -> Tensor:
    """A graph as a COO tensor that torch does not know to be coalesced."""
    indices = torch.stack([graph.row(), graph.col.long()])
    return torch.sparse_coo_tensor(indices, graph.value, graph.shape, check_invariants=False)


def info_nce(a: Tensor, b: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the cosine similarities of two views of ``rows``, the positive being the same row."""
    logits = F.normalize(a[rows], dim=1) @ F.normalize(b[rows], dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(rows)))
