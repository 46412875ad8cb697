"""Ranking metrics with binary relevance, for many users at once, in float64.

Notation, for one user: T is the set of target items, h_j is 1 when the item at rank j (from 1) is in T and 0
otherwise, and c_k = h_1 + ... + h_k. The definitions are those of MMRec and RecBole:

==========  =====================================================================================================
recall      c_k / \\|T\\|
precision   c_k / k
hitrate     1 if c_k > 0, else 0
mrr         1 / (rank of the first hit) if it is at most k, else 0
map         sum over j <= k of h_j * (c_j / j), divided by min(\\|T\\|, k)
ndcg        sum over j <= k of h_j / log2(j + 1), divided by sum over j <= min(\\|T\\|, k) of 1 / log2(j + 1)
==========  =====================================================================================================

``map`` is divided by the number of hits that fit into k ranks, so that a perfect ranking has 1 at every k; trec_eval
divides by \\|T\\|, which differs for users with more than k targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Ranking:
    """The hits of a block of users, with the cumulative sums that the metrics share.

    Args:
        hits: (n, K) bool, whether the item at each rank is a target; K is the largest cut-off, or all items.
        targets: (n,) int64, how many targets each user has, at least 1.
    """

    def __init__(self, hits: NDArray[np.bool_], targets: NDArray[np.int64]) -> None:
        self.hits = hits
        self.targets = targets
        self.ranks = np.arange(1, hits.shape[1] + 1, dtype=np.float64)
        self.cumulative: Floats = np.cumsum(hits, axis=1, dtype=np.float64)

    def columns(self, ks: Sequence[int]) -> NDArray[np.int64]:
        """(len(ks),) the column of the last rank within each cut-off."""
        return np.minimum(np.asarray(ks, dtype=np.int64), self.hits.shape[1]) - 1

    def best_hits(self, k: int) -> NDArray[np.int64]:
        """(n,) the most hits that k ranks can hold: min(targets, k)."""
        return np.minimum(self.targets, k)


def recall(ranking: Ranking, ks: Sequence[int]) -> Floats:
    """Share of the targets found. Returns (n, len(ks))."""
    return ranking.cumulative[:, ranking.columns(ks)] / ranking.targets[:, None]


def precision(ranking: Ranking, ks: Sequence[int]) -> Floats:
    """Share of the ranks that hold a target. Returns (n, len(ks))."""
    return ranking.cumulative[:, ranking.columns(ks)] / np.asarray(ks, dtype=np.float64)


def hitrate(ranking: Ranking, ks: Sequence[int]) -> Floats:
    """Whether any target was found. Returns (n, len(ks))."""
    return (ranking.cumulative[:, ranking.columns(ks)] > 0).astype(np.float64)


def mrr(ranking: Ranking, ks: Sequence[int]) -> Floats:
    """Reciprocal rank of the first target found. Returns (n, len(ks))."""
    first: NDArray[np.int64] = np.argmax(ranking.hits, axis=1) + 1
    return hitrate(ranking, ks) / first[:, None]


def map_(ranking: Ranking, ks: Sequence[int]) -> Floats:
    """Average precision over the hits that fit. Returns (n, len(ks))."""
    gained = np.cumsum(ranking.hits * (ranking.cumulative / ranking.ranks), axis=1)
    return _normalised(ranking, gained, ks, lambda k: ranking.best_hits(k).astype(np.float64))


def ndcg(ranking: Ranking, ks: Sequence[int]) -> Floats:
    """Discounted gain over the best possible one. Returns (n, len(ks))."""
    discount = 1.0 / np.log2(ranking.ranks + 1.0)
    gained, ideal = np.cumsum(ranking.hits * discount, axis=1), np.cumsum(discount)
    return _normalised(ranking, gained, ks, lambda k: ideal[ranking.best_hits(k) - 1])


METRICS: dict[str, Callable[[Ranking, Sequence[int]], Floats]] = {
    "recall": recall,
    "ndcg": ndcg,
    "precision": precision,
    "map": map_,
    "hitrate": hitrate,
    "mrr": mrr,
}


def _normalised(ranking: Ranking, gained: Floats, ks: Sequence[int], best: Callable[[int], Floats]) -> Floats:
    return np.stack([gained[:, column] / best(k) for k, column in zip(ks, ranking.columns(ks), strict=True)], axis=1)
