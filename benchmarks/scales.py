"""Data sets of the sizes that papers report, generated with their long tails, and the graphs made of them.

Users and items have about five interactions, as in the 5-core data, and a lognormal tail beyond them. The same scale is
the same data everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from crane.data import DataConfig, Dataset, demo_dataset, load_dataset
from crane.data.dataset import Interactions
from crane.data.split import TEST, TRAIN, VALIDATION, split_interactions
from crane_kernels import Graph

LEAST = 5  # interactions of a user and, on average, of the least popular items
SPREAD = 1.1  # of the logarithms of popularity
SPLIT = (8.0, 1.0, 1.0)
FEATURES = {"image": 512, "text": 384}
PART = 16
POWER_LAW_NODES, POWER_LAW_EDGES = 1_000_000, 10_000_000


@dataclass(frozen=True)
class Size:
    """Users, items and interactions of a data set."""

    users: int
    items: int
    interactions: int


SIZES = {
    "baby": Size(19_445, 7_050, 160_792),
    "sports": Size(35_598, 18_357, 296_337),
    "clothing": Size(39_387, 23_033, 278_677),
    "elec": Size(192_403, 63_001, 1_689_188),
    "large": Size(1_924_030, 630_010, 16_891_880),
}


@lru_cache(maxsize=2)
def interactions(scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Users and items, (E,) int64 each, of the distinct pairs of a scale, sorted by user, then item."""
    size = SIZES[scale]
    generator = np.random.default_rng(0)
    surplus = size.interactions - LEAST * size.users
    counts = LEAST + generator.multinomial(surplus, _tail(size.users, generator))
    least = LEAST / size.interactions
    popularity = (least + (1 - size.items * least) * _tail(size.items, generator)).cumsum()
    users = np.repeat(np.arange(size.users), counts)
    pairs = np.empty(0, dtype=np.int64)
    while True:
        items = np.searchsorted(popularity, generator.random(len(users)) * popularity[-1], side="right")
        new = np.unique(users * size.items + items)
        pairs = np.sort(np.concatenate([pairs, new[~_within(new, pairs)]]), kind="stable")
        missing = size.interactions - len(pairs)
        if missing == 0:
            found = np.divmod(pairs, size.items)
            return found[0], found[1]
        users = generator.choice(users, missing)


def _tail(n: int, generator: np.random.Generator) -> np.ndarray:
    """(n,) shares of a long-tailed distribution, in random order."""
    weights = generator.lognormal(sigma=SPREAD, size=n)
    return np.asarray(weights / weights.sum())


def _within(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which of ``values`` are in a sorted array."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.asarray(ascending[place] == values)


@lru_cache(maxsize=2)
def generated_dataset(scale: str) -> Dataset:
    """The pairs of a scale, split 8:1:1, with normal features of 512 (image) and 384 (text) columns."""
    size = SIZES[scale]
    users, items = interactions(scale)
    labels = split_interactions(users, SPLIT)
    parts = [Interactions(users[labels == label], items[labels == label]) for label in (TRAIN, VALIDATION, TEST)]
    generator = np.random.default_rng(1)
    features = {
        name: generator.standard_normal((size.items, width), dtype=np.float32) for name, width in FEATURES.items()
    }
    return Dataset(scale, np.arange(size.users), np.arange(size.items), *parts, features=features)


@lru_cache(maxsize=2)
def dataset(scale: str, folder: Path | None = None) -> Dataset:
    """The data set in ``folder``, or the demo, or a generated one."""
    if folder is not None:
        return load_dataset(DataConfig(path=str(folder)))
    return demo_dataset() if scale == "demo" else generated_dataset(scale)


def part_of(pairs: Interactions) -> Interactions:
    """Every sixteenth pair: by default what takes research code most of a minute is measured on these."""
    return Interactions(pairs.users[::PART], pairs.items[::PART])


@lru_cache(maxsize=1)
def power_law_graph() -> Graph:
    """A square graph of nearly 10^7 edges (a few are drawn twice) with hub rows of 10^5."""
    generator = np.random.default_rng(0)
    ends = []
    for exponent in (0.9, 0.5):  # rows, columns
        shares = ((np.arange(POWER_LAW_NODES) + 2.0) ** -exponent).cumsum()
        ranks = np.searchsorted(shares, generator.random(POWER_LAW_EDGES) * shares[-1], side="right")
        ends.append(generator.permutation(POWER_LAW_NODES)[ranks])
    graph = Graph.from_edges(ends[0], ends[1], shape=(POWER_LAW_NODES, POWER_LAW_NODES))
    return graph.with_value(torch.rand(graph.nnz, generator=torch.Generator().manual_seed(0)))


@lru_cache(maxsize=2)
def hub_graph(share: float, small: bool) -> Graph:
    """A square graph of 13 random columns a row on average, of which one row in the middle has that share."""
    n = 10_000 if small else 250_000
    n_hub = int(13 * n * share)
    generator = np.random.default_rng(0)
    row = np.concatenate([np.arange(13 * n - n_hub) % n, np.full(n_hub, n // 2)])
    col = generator.integers(0, n, 13 * n)
    graph = Graph.from_edges(row, col, shape=(n, n), duplicates="keep")
    return graph.with_value(torch.rand(graph.nnz, generator=torch.Generator().manual_seed(0)))
