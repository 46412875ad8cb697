"""Training triples: every training pair once an epoch, in random order, each with a sampled negative item."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from crane.data import Dataset
from crane.seeds import Purpose, numpy_generator
from crane_kernels import sample_negatives


class EpochSampler:
    """Yields the batches of an epoch, which depend on the data, the seed and the epoch's number alone.

    Negatives are drawn for the whole epoch in one vectorised call; none is a training item of its user. The last batch
    may be smaller.

    Args:
        dataset: the data set; its training pairs are the positives.
        batch_size: triples a batch.
        seed: the run's seed.

    Raises:
        ValueError: there are no training interactions, or a user has every item and no negative can be drawn.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        if not len(dataset.train):
            raise ValueError(f"the data set {dataset.name} has no training interactions, expected at least one")
        self.graph = dataset.graph("train")
        full = np.flatnonzero(self.graph.rowptr.diff().numpy() == dataset.n_items)
        if len(full):
            raise ValueError(
                f"the user {dataset.user_ids[full[0]]} has every one of the {dataset.n_items} items in training, "
                "expected at least one item that can serve as a negative"
            )
        self.users = torch.from_numpy(dataset.train.users)
        self.items = torch.from_numpy(dataset.train.items)
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self.users) / self.batch_size)

    def epoch(self, number: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches (users, positives, negatives) of epoch ``number``, (B,) int64 tensors of dense indices each."""
        generator = numpy_generator(self.seed, number, Purpose.SAMPLING)
        order = torch.from_numpy(generator.permutation(len(self.users)))
        users = self.users[order]
        negatives = sample_negatives(self.graph, users, generator)
        triples = torch.stack([users, self.items[order], negatives]).to(device)
        for start in range(0, triples.shape[1], self.batch_size):
            batch = triples[:, start : start + self.batch_size]
            yield batch[0], batch[1], batch[2]
