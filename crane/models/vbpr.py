"""VBPR (He and McAuley, AAAI 2016, arXiv 1510.01784): matrix factorisation with projected item features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from crane.config import check_at_least
from crane.data import Dataset
from crane.models.base import Loss, Recommender, embedding_table
from crane.models.batch import Batch
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
        super().__init__()
        self.config = config
        self.n_users = dataset.n_users
        features = item_features(dataset, "VBPR")
        self.user_embedding = embedding_table(dataset.n_users, config.dim * (1 + len(features)), generator)
        self.item_embedding = embedding_table(dataset.n_items, config.dim, generator)
        self.projection = FeatureProjection(features, config.dim, generator)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        batch = Batch.of(users, positives, negatives, self.n_users)
        final = torch.cat([self.user_embedding.index_select(0, batch.user_rows), self._items(batch.item_rows)])
        bpr = bpr_loss(final, final, batch.users, batch.positives, batch.negatives)
        return Loss.of({"bpr": bpr, "l2": self.config.l2 * batch.half_squared_norm(final)})

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.user_embedding.detach(), self._items()

    def _items(self, rows: Tensor | None = None) -> Tensor:
        own = self.item_embedding if rows is None else self.item_embedding.index_select(0, rows)
        return torch.cat([own, self.projection(rows).flatten(1)], 1)
