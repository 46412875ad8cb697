"""A batch of training triples by the nodes it touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Triples as places among the distinct nodes of the batch, so that each node is computed and gathered once.

    Nodes are the users, and after them the items, of the data set.

    Attributes:
        nodes: (n,) int64, ascending.
        counts: (n,) int64, how often the triples name each node.
        n_users: how many of ``nodes`` are users; the rest are items.
        users: (B,) int64 place among ``nodes`` of each triple's user.
        positives: (B,) the same of its positive item.
        negatives: (B,) the same of its negative item.
        offset: the node of item 0, the number of users in the data set.
    """

    nodes: Tensor
    counts: Tensor
    n_users: int
    users: Tensor
    positives: Tensor
    negatives: Tensor
    offset: int

    @classmethod
    def of(cls, users: Tensor, positives: Tensor, negatives: Tensor, offset: int) -> Self:
        """The batch of three (B,) int64 tensors of dense indices, in a data set of ``offset`` users."""
        named = torch.cat([users, positives + offset, negatives + offset])
        nodes, places, counts = torch.unique(named, return_inverse=True, return_counts=True)
        n_users = int(torch.searchsorted(nodes, offset))
        of_users, of_positives, of_negatives = places.split(len(users))
        return cls(nodes, counts, n_users, of_users, of_positives, of_negatives, offset)

    def __len__(self) -> int:
        """Triples in the batch."""
        return len(self.users)

    @property
    def user_rows(self) -> Tensor:
        """Dense indices of the batch's distinct users, ascending: those of the first nodes."""
        return self.nodes[: self.n_users]

    @property
    def item_rows(self) -> Tensor:
        """Dense indices of the batch's distinct items, ascending: those of the last nodes."""
        return self.nodes[self.n_users :] - self.offset

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Places of users among ``user_rows``, and of positives and negatives among ``item_rows``."""
        return self.users, self.positives - self.n_users, self.negatives - self.n_users

    def half_squared_norm(self, x: Tensor) -> Tensor:
        """Half the squares of the nodes' rows (n, d), summed over all that the triples name, a triple."""
        # Not torch.dot: the last bits of BLAS's depend on where the memory lies, and runs must repeat bit for bit.
        return 0.5 * (x.square().sum(1) * self.counts).sum() / len(self)
