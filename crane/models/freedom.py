"""FREEDOM (Zhou and Shen, ACM MM 2023, arXiv 2211.06924): a frozen item-item graph and a pruned user-item graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from crane.config import check_above, check_at_least, check_between
from crane.data import Dataset
from crane.models.base import GraphRecommender, Loss
from crane.models.batch import Batch
from crane.models.features import FeatureProjection, item_features, semantic_graph
from crane_kernels import bpr_loss, propagate, spmm


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


class FREEDOM(GraphRecommender):
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
        super().__init__(dataset, config, generator, dim=config.dim, edge_keep=config.edge_keep)
        features = item_features(dataset, "FREEDOM")
        self.projection = FeatureProjection(features, config.dim, generator)
        self.item_graph = semantic_graph(features, config.neighbours, config.image_weight)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        batch, initial = Batch.of(users, positives, negatives, self.n_users), self.initial()
        nodes = propagate(self.epoch_graph, initial, self.config.layers, batch.nodes)
        user, behaviour = nodes[: batch.n_users], nodes[batch.n_users :]
        item = behaviour + spmm(self.item_graph, self.item_embedding, batch.item_rows)
        triples = batch.places()
        parts = {"bpr": bpr_loss(user, item, *triples)}
        if self.config.feature_weight:
            features = [bpr_loss(user, x, *triples) for x in self.projection(batch.item_rows).unbind(1)]
            parts["features"] = self.config.feature_weight * torch.stack(features).sum()
        parts["l2"] = self.config.l2 * batch.half_squared_norm(initial.index_select(0, batch.nodes))
        return Loss.of(parts)

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        user, item = self.split(propagate(self.graph, self.initial(), self.config.layers))
        return user, item + spmm(self.item_graph, self.item_embedding)
