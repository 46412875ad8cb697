"""What every model offers to the trainer, to evaluation and to recommendation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from crane.data import Dataset
from crane_kernels import Graph


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

    def __init__(self, dataset: Dataset, config: Any, generator: torch.Generator) -> None:
        super().__init__()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A Graph is no tensor: nn.Module would leave it behind when it moves or casts the parameters.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        like = next(self.parameters(), None)
        if like is not None:
            for name, value in vars(self).items():
                if isinstance(value, Graph):
                    setattr(self, name, value.to(like.device).to(like.dtype))
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


def embedding_table(rows: int, width: int, generator: torch.Generator) -> nn.Parameter:
    """A (rows, width) table of Xavier-uniform embeddings drawn from ``generator``."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, width), generator=generator))


def half_squared_norm(x: Tensor) -> Tensor:
    """Half the sum of the squares of ``x``."""
    # Not torch.dot: the last bits of BLAS's depend on where the memory lies, and runs must repeat bit for bit.
    return 0.5 * x.square().sum()
