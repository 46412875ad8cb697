"""From a list of interactions to the normalised graph of users and items, against scipy as models use it."""

from __future__ import annotations

from functools import partial

import numpy as np
import scales
from baseline.lightgcn import normalized_adjacency
from machine import Work
from measuring import Measure, same
from torch import Tensor

from crane_kernels import Graph

OPERATION = "graph building"


def build(users: np.ndarray, items: np.ndarray, size: scales.Size) -> Graph:
    return Graph.from_edges(users, items, shape=(size.users, size.items)).bipartite().normalize("symmetric")


def agree(ours: Graph, theirs: Tensor) -> None:
    same(ours, Graph.from_torch(theirs))


def test_graph_building(measure: Measure, scale: str) -> None:
    users, items = scales.interactions(scale)
    order = np.random.default_rng(0).permutation(len(users))  # interactions come in order of time
    users, items = users[order], items[order]
    size = scales.SIZES[scale]
    measure(
        partial(build, users, items, size),
        {"scipy, to an uncoalesced COO tensor": partial(normalized_adjacency, users, items, size.users, size.items)},
        size=size.interactions,
        unit="interactions",
        work=Work(size.interactions * (16 + 2 * 8) + 8 * (size.users + size.items)),
        agree=agree,
    )
