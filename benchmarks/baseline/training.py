"""One epoch of training with negatives drawn user by user in Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Model(Protocol):
    """What :func:`train_epoch` asks of a model."""

    def begin_epoch(self) -> None:
        """Draw what is random in an epoch."""
        ...

    def calculate_loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Loss of a batch of triples, each (B,) int64."""
        ...


class Sampler:
    """Shuffled batches of training pairs with one negative each.

    Args:
        users: (E,) int64 users of the training pairs.
        items: (E,) int64 items of the training pairs.
        n_items: items to draw negatives from.
        batch_size: triples a batch.
        seed: of shuffling and drawing.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_items: int, batch_size: int, seed: int) -> None:
        self.users, self.items = users, items
        self.n_items = n_items
        self.batch_size = batch_size
        self.random = random.Random(seed)
        self.generator = np.random.default_rng(seed)
        self.history: dict[int, set[int]] = {}
        for u, i in zip(users.tolist(), items.tolist(), strict=True):
            self.history.setdefault(u, set()).add(i)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = self.generator.permutation(len(self.users))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            users = self.users[batch]
            negatives = [self._negative(u) for u in users.tolist()]
            yield torch.from_numpy(users), torch.from_numpy(self.items[batch]), torch.tensor(negatives)

    def _negative(self, user: int) -> int:
        item = self.random.randrange(self.n_items)
        while item in self.history[user]:
            item = self.random.randrange(self.n_items)
        return item


def train_epoch(model: Model, optimizer: torch.optim.Optimizer, sampler: Sampler) -> float:
    """Take one optimiser step for each batch; the mean loss."""
    model.begin_epoch()
    total, batches = 0.0, 0
    for users, positives, negatives in sampler:
        optimizer.zero_grad()
        loss = model.calculate_loss(users, positives, negatives)
        loss.backward()
        optimizer.step()
        total += loss.item()
        batches += 1
    return total / batches
