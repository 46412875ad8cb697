"""What every model offers to the trainer, to evaluation and to recommendation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from crane.data import Dataset
from crane_kernels import Graph, prune_edges


@dataclass(frozen=True)
class Loss:
    """The loss of one batch.

    Attributes:
        total: scalar to differentiate.
        parts: detached scalars that ``total`` is made of, by name; the same names in every batch. They are logged, and
            a value that is not finite is reported by its name.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: dict[str, Tensor]) -> Self:
        """The sum of ``parts``."""
        total = torch.stack(list(parts.values())).sum()
        return cls(total, {name: part.detach() for name, part in parts.items()})


class Recommender(nn.Module):
    """A model that scores a user and an item by the dot product of their embeddings.

    A subclass names its settings in ``config_class`` (a frozen dataclass with defaults) and the training settings that
    suit it in ``training_defaults`` (laid over the defaults of ``crane.config.TrainingConfig``). Its constructor takes
    ``(dataset, config, generator)`` and draws all initial weights from the generator. What can be computed again from
    the data set belongs into non-persistent buffers, so that checkpoints hold weights alone; graphs that are attributes
    follow the parameters to their device and dtype.
    """

    config_class: ClassVar[type[Any]]
    training_defaults: ClassVar[dict[str, Any]] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A Graph is no tensor: nn.Module would leave it behind when it moves or casts the parameters.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        like = next(self.parameters(), None)
        if like is not None:
            for module in self.modules():
                for name, value in vars(module).items():
                    if isinstance(value, Graph):
                        setattr(module, name, value.to(like.device).to(like.dtype))
        return self

    def begin_epoch(self, generator: np.random.Generator) -> None:
        """Draw the epoch's random state, such as pruned edges, from nothing but ``generator``."""

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        """The loss of a batch of triples, three (B,) int64 tensors of dense indices."""
        raise NotImplementedError

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Final embeddings, users (U, d) and items (I, d), from the full training graph; no gradient."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: ``params``, and optionally ``lr_scale`` (1) and ``weight_decay`` (0)."""
        return [{"params": list(self.parameters()), "lr_scale": 1.0, "weight_decay": 0.0}]


class GraphRecommender(Recommender):
    """A recommender with an embedding of each user and item, and the graph of who interacted with what.

    Attributes:
        interactions: users x items graph of the training pairs.
        graph: the behaviour graph, symmetrically normalised, over users and, after them, items.
        epoch_graph: what training propagates over: ``graph``, or the edges of it that the epoch keeps.
    """

    def __init__(
        self, dataset: Dataset, config: Any, generator: torch.Generator, *, dim: int, edge_keep: float = 1.0
    ) -> None:
        """Draw (.., ``dim``) tables; each epoch keeps the fraction ``edge_keep`` of the training edges."""
        super().__init__()
        self.config = config
        self.edge_keep = edge_keep
        self.n_users = dataset.n_users
        self.user_embedding = embedding_table(dataset.n_users, dim, generator)
        self.item_embedding = embedding_table(dataset.n_items, dim, generator)
        self.interactions = dataset.graph("train")
        self.graph = self.interactions.bipartite().normalize("symmetric")
        self.epoch_graph = self.graph

    def begin_epoch(self, generator: np.random.Generator) -> None:
        if self.edge_keep < 1:
            kept = prune_edges(self.interactions, self.edge_keep, generator)
            self.epoch_graph = kept.bipartite().normalize("symmetric")

    def initial(self) -> Tensor:
        """Initial embeddings of all nodes, users before items: (N, d)."""
        return torch.cat([self.user_embedding, self.item_embedding])

    def split(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of all nodes as rows of users and rows of items."""
        return nodes[: self.n_users], nodes[self.n_users :]


def embedding_table(rows: int, width: int, generator: torch.Generator) -> nn.Parameter:
    """A (rows, width) table of Xavier-uniform embeddings drawn from ``generator``."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, width), generator=generator))
