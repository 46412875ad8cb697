"""The k-core of an interaction graph."""

from __future__ import annotations

import numpy as np


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Find the interactions left when every user and every item must have at least ``k``.

    Peels users and items with fewer than ``k`` interactions until none is left. Each round looks only at the
    interactions of those removed in the round before, so all rounds together cost one pass over the interactions.

    Args:
        users: (E,) int64 indices from 0; pairs are distinct.
        items: (E,) int64 indices from 0.
        k: the least number of interactions; 0 and 1 keep everything.

    Returns:
        (E,) bool, true for the interactions that stay.
    """
    keep = np.ones(len(users), dtype=bool)
    if k <= 1 or not len(users):
        return keep
    n_users = int(users.max()) + 1
    nodes = np.concatenate([users, items + n_users])
    degree = np.bincount(nodes)
    incident = np.argsort(nodes, kind="stable") % len(users)
    rowptr = np.concatenate([[0], np.cumsum(degree)])
    removed = degree < k
    frontier = np.flatnonzero(removed)
    while len(frontier):
        edges = incident[_ranges(rowptr[frontier], rowptr[frontier + 1])]
        edges = np.unique(edges[keep[edges]])
        keep[edges] = False
        touched, lost = np.unique(np.concatenate([users[edges], items[edges] + n_users]), return_counts=True)
        degree[touched] -= lost
        frontier = touched[(degree[touched] < k) & ~removed[touched]]
        removed[frontier] = True
    return keep


def _ranges(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Concatenate ``arange(start[i], stop[i])``."""
    length = stop - start
    first = np.cumsum(length) - length
    ranges: np.ndarray = np.arange(length.sum()) + np.repeat(start - first, length)
    return ranges
