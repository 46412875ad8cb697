"""LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): embeddings averaged over the layers of the behaviour graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from crane.config import check_at_least
from crane.data import Dataset
from crane.models.base import GraphRecommender, Loss
from crane.models.batch import Batch
from crane_kernels import bpr_loss, propagate


@dataclass(frozen=True)
class LightGCNConfig:
    """Settings of :class:`LightGCN`.

    Attributes:
        dim: width of the embeddings.
        layers: graph layers.
        l2: weight of half the squared norm of the batch's initial embeddings, a triple.
    """

    dim: int = 64
    layers: int = 3
    l2: float = 1e-2

    def __post_init__(self) -> None:
        check_at_least("dim", self.dim, 1)
        check_at_least("layers", self.layers, 0)
        check_at_least("l2", self.l2, 0)


class LightGCN(GraphRecommender):
    """Final embeddings are the mean of x, Â x, ..., Â^L x, with Â the normalised user-item graph."""

    config_class: ClassVar[type[Any]] = LightGCNConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-3,
        "schedule": "step",
        "decay_factor": 0.97,
        "decay_epochs": 1,
        "epochs": 80,
        "eval_every": 2,
        "patience": 8,
    }

    def __init__(self, dataset: Dataset, config: LightGCNConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator, dim=config.dim)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        batch, initial = Batch.of(users, positives, negatives, self.n_users), self.initial()
        final = propagate(self.graph, initial, self.config.layers, batch.nodes)
        bpr = bpr_loss(final, final, batch.users, batch.positives, batch.negatives)
        l2 = self.config.l2 * batch.half_squared_norm(initial.index_select(0, batch.nodes))
        return Loss.of({"bpr": bpr, "l2": l2})

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.split(propagate(self.graph, self.initial(), self.config.layers))
