"""Pruning and negative sampling, against the loop over users in Python that recommenders' code has in their place."""

from __future__ import annotations

import itertools
import random
from functools import partial

import numpy as np
import scales
import torch
from measuring import Measure, anything

from crane_kernels import Graph, prune_edges, sample_negatives

OPERATION = "sampling"
SCALES = ("baby",)
BATCH, KEEP = 2048, 0.5
AT_LEAST = 20  # times as fast as the loop


def graph_of(scale: str) -> Graph:
    users, items = scales.interactions(scale)
    size = scales.SIZES[scale]
    return Graph.from_edges(users, items, shape=(size.users, size.items))


def negatives_by_user(positives: list[set[int]], users: list[int], n_items: int) -> torch.Tensor:
    """One item drawn for each user, again while it is a positive."""
    found, items = [], range(n_items)
    for user in users:
        item = random.sample(items, 1)[0]
        while item in positives[user]:
            item = random.sample(items, 1)[0]
        found.append(item)
    return torch.tensor(found)


def prune_by_user(rowptr: np.ndarray, col: np.ndarray, weight: np.ndarray, generator: np.random.Generator) -> Graph:
    """Each user's share of items, drawn by weight without replacement."""
    rows, columns = [], []
    for user in range(len(rowptr) - 1):
        items, weights = (array[rowptr[user] : rowptr[user + 1]] for array in (col, weight))
        kept = generator.choice(items, round(KEEP * len(items)), replace=False, p=weights / weights.sum())
        rows.append(np.full(len(kept), user))
        columns.append(kept)
    return Graph.from_edges(np.concatenate(rows), np.concatenate(columns))


def test_sample_negatives(measure: Measure, scale: str) -> None:
    graph, generator = graph_of(scale), np.random.default_rng(0)
    edges = torch.randint(graph.nnz, (BATCH,), generator=torch.Generator().manual_seed(0))
    users = graph.row()[edges]
    rowptr, col = graph.rowptr.tolist(), graph.col.tolist()
    positives = [set(col[begin:end]) for begin, end in itertools.pairwise(rowptr)]
    measure(
        partial(sample_negatives, graph, users, generator),
        {"loop over users": partial(negatives_by_user, positives, users.tolist(), graph.n_cols)},
        case="negatives of a batch",
        size=BATCH,
        unit="users",
        agree=anything,
    )
    measure.at_least("loop over users", AT_LEAST)


def test_prune_edges(measure: Measure, scale: str) -> None:
    graph, generator = graph_of(scale), np.random.default_rng(0)
    weight = graph.normalize("symmetric").value.double().numpy()
    arrays = graph.rowptr.numpy(), graph.col.numpy(), weight
    measure(
        partial(prune_edges, graph, KEEP, generator),
        {"loop over users": partial(prune_by_user, *arrays, generator)},
        case="pruning",
        size=graph.nnz,
        unit="edges",
        agree=anything,
    )
    measure.at_least("loop over users", AT_LEAST)
