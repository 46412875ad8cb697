"""The data set every model trains on: interactions by split, features by modality, original ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from crane.words import counted
from crane_kernels import Graph

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Interactions:
    """Pairs of dense user and item indices: distinct, sorted by user, then item.

    Attributes:
        users: (E,) int64.
        items: (E,) int64.
    """

    users: np.ndarray
    items: np.ndarray

    @classmethod
    def from_pairs(cls, users: np.ndarray, items: np.ndarray) -> Interactions:
        """Sort pairs by user, then item; equal pairs become one.

        Args:
            users: (E,) indices from 0.
            items: (E,) indices from 0, such that U x I is below 2**63.
        """
        users, items = np.asarray(users, dtype=np.int64), np.asarray(items, dtype=np.int64)
        n_items = int(items.max(initial=0)) + 1
        return cls(*np.divmod(np.unique(users * n_items + items), n_items))

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items, what they did, and what the items look like.

    Attributes:
        name: for people.
        user_ids: (U,) the users' own ids, int64 or an object array of str.
        item_ids: (I,) the items' own ids.
        train: training interactions; every user has at least one.
        validation: interactions that choose the epoch.
        test: interactions that are looked at once.
        features: modality to (I, d_m) float32, finite, in order.
        notices: what loading changed (merged, filled, left out), a sentence each.
    """

    name: str
    user_ids: np.ndarray
    item_ids: np.ndarray
    train: Interactions
    validation: Interactions
    test: Interactions
    features: dict[str, np.ndarray] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check sizes and indices.

        Raises:
            ValueError: an index is out of range, a user has no training interaction, or a feature matrix has the
                wrong shape.
        """
        for split in SPLITS:
            pairs: Interactions = getattr(self, split)
            for name, index, size in (("users", pairs.users, self.n_users), ("items", pairs.items, self.n_items)):
                if len(index) and not 0 <= index.min() <= index.max() < size:
                    raise ValueError(f"{split}.{name} spans {index.min()} to {index.max()}, expected 0 to {size - 1}")
        trained = np.bincount(self.train.users, minlength=self.n_users)
        if not trained.all():
            raise ValueError(f"user {self.user_ids[np.argmin(trained)]} has no training interaction, expected one")
        for modality, matrix in self.features.items():
            if matrix.ndim != 2 or len(matrix) != self.n_items or matrix.dtype != np.float32:
                raise ValueError(
                    f"features[{modality!r}] is {matrix.dtype} of shape {matrix.shape}, "
                    f"expected float32 of shape ({self.n_items}, d)"
                )

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items, I, those without interactions included."""
        return len(self.item_ids)

    def graph(self, split: str = "train", *others: str) -> Graph:
        """The users x items graph of one split, or of several together; values are ones.

        Raises:
            ValueError: a split of that name does not exist.
        """
        names = (split, *others)
        for name in names:
            if name not in SPLITS:
                raise ValueError(f"split is {name!r}, expected one of {', '.join(SPLITS)}")
        parts: list[Interactions] = [getattr(self, name) for name in names]
        rows = torch.from_numpy(np.concatenate([part.users for part in parts]))
        cols = torch.from_numpy(np.concatenate([part.items for part in parts]))
        return Graph.from_edges(rows, cols, shape=(self.n_users, self.n_items))

    def summary(self) -> dict[str, Any]:
        """Sizes: users, items, interactions (in all and by split), density, cold items, widths of the modalities."""
        sizes = {split: len(getattr(self, split)) for split in SPLITS}
        interactions = sum(sizes.values())
        return {
            "name": self.name,
            "users": self.n_users,
            "items": self.n_items,
            "interactions": interactions,
            **sizes,
            "density": interactions / (self.n_users * self.n_items),
            "cold_items": int(self.n_items - len(np.unique(self.train.items))),
            "modalities": {modality: matrix.shape[1] for modality, matrix in self.features.items()},
        }

    def describe(self) -> str:
        """The summary and the notices as a few lines of text."""
        s = self.summary()
        modalities = ", ".join(f"{name} ({width})" for name, width in s["modalities"].items()) or "none"
        lines = [
            f"{s['name']}: {counted(s['users'], 'user')}, {counted(s['items'], 'item')}, "
            f"{counted(s['interactions'], 'interaction')} (density {s['density']:.4%})",
            f"train {s['train']:,}, validation {s['validation']:,}, test {s['test']:,}; "
            f"{counted(s['cold_items'], 'item')} without training interactions",
            f"modalities: {modalities}",
        ]
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])
