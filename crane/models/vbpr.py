"""VBPR (He and McAuley, AAAI 2016, arXiv 1510.01784): matrix factorisation with projected item features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from crane.config import check_at_least
from crane.data import Dataset
from crane.models.base import Loss, Recommender, embedding_table, half_squared_norm
from crane.models.features import FeatureProjection, item_features
from crane_kernels import bpr_loss


@dataclass(frozen=True)
class VBPRConfig:
    """Settings of :class:`VBPR`.

    Attributes:
        dim: width of the item embeddings and of each modality's projection.
        l2: weight of half the squared norm of the batch's final embeddings, a triple.
    """

    dim: int = 64
    l2: float = 1e-2

    def __post_init__(self) -> None:
        check_at_least("dim", self.dim, 1)
        check_at_least("l2", self.l2, 0)


class VBPR(Recommender):
    """An item is [embedding | projected features of each modality]; a user has an embedding of that width."""

    config_class: ClassVar[type[Any]] = VBPRConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-3,
        "epochs": 60,
        "eval_every": 2,
        "patience": 8,
    }

    def __init__(self, dataset: Dataset, config: VBPRConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        self.config = config
        features = item_features(dataset, "VBPR")
        self.user_embedding = embedding_table(dataset.n_users, config.dim * (1 + len(features)), generator)
        self.item_embedding = embedding_table(dataset.n_items, config.dim, generator)
        self.projection = FeatureProjection(features, config.dim, generator)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        item = self._items()
        bpr = bpr_loss(self.user_embedding, item, users, positives, negatives)
        norm = half_squared_norm(self.user_embedding.index_select(0, users))
        norm = norm + half_squared_norm(item.index_select(0, torch.cat([positives, negatives])))
        l2 = self.config.l2 * norm / len(users)
        return Loss(bpr + l2, {"bpr": bpr.detach(), "l2": l2.detach()})

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.user_embedding.detach(), self._items()

    def _items(self) -> Tensor:
        return torch.cat([self.item_embedding, self.projection().flatten(1)], 1)
