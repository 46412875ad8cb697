"""FREEDOM (Zhou and Shen, ACM MM 2023, arXiv 2211.06924): a frozen item-item graph and a pruned user-item graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from crane.config import check_above, check_at_least, check_between
from crane.data import Dataset
from crane.models.base import Loss, Recommender, embedding_table, half_squared_norm
from crane.models.features import FeatureProjection, item_features, semantic_graph
from crane_kernels import bpr_loss, propagate, prune_edges, spmm


@dataclass(frozen=True)
class FREEDOMConfig:
    """Settings of :class:`FREEDOM`.

    Attributes:
        dim: width of the embeddings.
        layers: layers of the user-item graph.
        edge_keep: fraction of the training edges that an epoch keeps; 1 prunes none.
        neighbours: nearest items, itself included, that each modality connects an item to.
        image_weight: the image's share in the item-item graph; the other modalities share the rest.
        feature_weight: weight of each modality's own BPR loss.
        l2: weight of half the squared norm of the batch's initial embeddings, a triple.
    """

    dim: int = 64
    layers: int = 2
    edge_keep: float = 0.2
    neighbours: int = 10
    image_weight: float = 0.1
    feature_weight: float = 1e-3
    l2: float = 1e-2

    def __post_init__(self) -> None:
        check_at_least("dim", self.dim, 1)
        check_at_least("layers", self.layers, 0)
        check_above("edge_keep", self.edge_keep, 0)
        check_between("edge_keep", self.edge_keep, 0, 1)
        check_at_least("neighbours", self.neighbours, 1)
        check_between("image_weight", self.image_weight, 0, 1)
        check_at_least("feature_weight", self.feature_weight, 0)
        check_at_least("l2", self.l2, 0)


class FREEDOM(Recommender):
    """An item is its behaviour embedding plus the sum of its similar items' embeddings; a user is behaviour alone."""

    config_class: ClassVar[type[Any]] = FREEDOMConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-3,
        "schedule": "step",
        "decay_factor": 0.97,
        "decay_epochs": 1,
        "epochs": 80,
        "eval_every": 2,
        "patience": 8,
    }

    def __init__(self, dataset: Dataset, config: FREEDOMConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        self.config = config
        self.n_users = dataset.n_users
        features = item_features(dataset, "FREEDOM")
        self.user_embedding = embedding_table(dataset.n_users, config.dim, generator)
        self.item_embedding = embedding_table(dataset.n_items, config.dim, generator)
        self.projection = FeatureProjection(features, config.dim, generator)
        self.interactions = dataset.graph("train")
        self.graph = self.interactions.bipartite().normalize("symmetric")
        self.epoch_graph = self.graph
        self.item_graph = semantic_graph(features, config.neighbours, config.image_weight)

    def begin_epoch(self, generator: np.random.Generator) -> None:
        if self.config.edge_keep < 1:
            kept = prune_edges(self.interactions, self.config.edge_keep, generator)
            self.epoch_graph = kept.bipartite().normalize("symmetric")

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        initial = torch.cat([self.user_embedding, self.item_embedding])
        user, item = self._propagated(initial, pruned=True)
        parts = {"bpr": bpr_loss(user, item, users, positives, negatives)}
        if self.config.feature_weight:
            features = self.projection()
            parts["features"] = (
                self.config.feature_weight
                * torch.stack(
                    [bpr_loss(user, features[:, m], users, positives, negatives) for m in range(features.shape[1])]
                ).sum()
            )
        rows = torch.cat([users, positives + self.n_users, negatives + self.n_users])
        parts["l2"] = self.config.l2 * half_squared_norm(initial.index_select(0, rows)) / len(users)
        return Loss(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self._propagated(torch.cat([self.user_embedding, self.item_embedding]), pruned=False)

    def _propagated(self, initial: Tensor, *, pruned: bool) -> tuple[Tensor, Tensor]:
        nodes = propagate(self.epoch_graph if pruned else self.graph, initial, self.config.layers)
        return nodes[: self.n_users], nodes[self.n_users :] + spmm(self.item_graph, initial[self.n_users :])
