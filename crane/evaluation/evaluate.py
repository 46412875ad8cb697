"""Full-ranking evaluation: every item is ranked for every user, no sampled candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crane.evaluation.metrics import METRICS, Ranking
from crane.evaluation.ranking import check_finite, ranked_blocks
from crane_kernels import Graph, checks

if TYPE_CHECKING:
    from crane.data import Dataset

KS = (5, 10, 20, 50)


def evaluate(
    user: Tensor,
    item: Tensor,
    seen: Graph | None,
    targets: Graph,
    ks: Sequence[int] = KS,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, float]:
    """Rank all unseen items for every user with targets and average the metrics over those users.

    Scores are dot products; ties go to the lowest item index. Users without targets are left out. A target that is
    also seen is never ranked and counts as missed. The metrics are defined in :mod:`crane.evaluation.metrics`.

    Args:
        user: (U, d) float, final user embeddings.
        item: (I, d) float, final item embeddings, of the dtype and device of ``user``.
        seen: U x I graph of the items not to rank, usually the training interactions; None ranks everything.
        targets: U x I graph of the items to be found; its values are not read, and an edge kept twice is one item.
        ks: cut-offs, positive.
        metrics: names out of "recall", "ndcg", "precision", "map", "hitrate", "mrr".

    Returns:
        Means over the users with targets, keyed "recall@20", metric by metric and k by k.

    Raises:
        TypeError: the embeddings are no floating-point matrices of one dtype, or the graphs no graphs.
        ValueError: shapes do not fit, a metric or cut-off is unknown, no user has targets, or scores are not finite.
    """
    _check(user, item, seen, targets, ks, metrics)
    seen = seen if seen is None else seen.to(user.device)
    sums = {name: np.zeros(len(ks)) for name in metrics}
    n_users = 0
    deepest = min(max(ks), len(item))
    for ranking in _rankings(user.detach(), item.detach(), seen, targets.to(user.device), deepest):
        n_users += len(ranking.targets)
        for name in metrics:
            sums[name] += METRICS[name](ranking, ks).sum(axis=0)
    return {f"{name}@{k}": float(sums[name][j] / n_users) for name in metrics for j, k in enumerate(ks)}


def evaluate_split(
    dataset: Dataset,
    split: str,
    user: Tensor,
    item: Tensor,
    *,
    mask_validation: bool = False,
    ks: Sequence[int] = KS,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, float]:
    """Evaluate on the "validation" or "test" split with the training items masked, as MMRec does.

    Args:
        dataset: where the splits come from.
        split: "validation" or "test".
        user: (U, d) float, final user embeddings.
        item: (I, d) float, final item embeddings.
        mask_validation: at test, mask the validation items as well.
        ks: cut-offs.
        metrics: names of metrics.

    Raises:
        ValueError: ``split`` is something else or empty, or what :func:`evaluate` raises.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split: found {split!r}, expected 'validation' or 'test'")
    if not len(getattr(dataset, split)):
        raise ValueError(f"the data set {dataset.name} has no {split} interactions, expected some to be found")
    known = ("train", "validation") if mask_validation and split == "test" else ("train",)
    return evaluate(user, item, dataset.graph(*known), dataset.graph(split), ks, metrics)


def popularity(train: Graph) -> tuple[Tensor, Tensor]:
    """The baseline that recommends what most users have: embeddings whose dot product is the item's count.

    Args:
        train: U x I graph of the training interactions.

    Returns:
        user (U, 1) of ones and item (I, 1) of counts, float64, for :func:`evaluate`.
    """
    counts = torch.bincount(train.col.long(), minlength=train.n_cols).to(torch.float64)
    return torch.ones(train.n_rows, 1, dtype=torch.float64, device=counts.device), counts[:, None]


def _rankings(user: Tensor, item: Tensor, seen: Graph | None, targets: Graph, k: int) -> Iterator[Ranking]:
    """Rank the users that have targets, block by block."""
    keys = torch.unique(targets.row() * targets.n_cols + targets.col)  # sorted, without what is kept twice
    counts = torch.bincount(keys // targets.n_cols, minlength=targets.n_rows)
    users = torch.nonzero(counts).flatten()
    for block, _, items in ranked_blocks(user, item, seen, users, k):
        hits = _hits(block, items, keys, targets.n_cols)
        yield Ranking(hits.cpu().numpy(), counts[block].cpu().numpy())


def _hits(users: Tensor, items: Tensor, keys: Tensor, n_items: int) -> Tensor:
    """(b, k) whether each ranked item is a target: its (user, item) key is looked up in the sorted ``keys``."""
    wanted = torch.where(items < 0, -1, users[:, None] * n_items + items)
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return keys[place] == wanted


def _check(
    user: Tensor, item: Tensor, seen: Graph | None, targets: Graph, ks: Sequence[int], metrics: Sequence[str]
) -> None:
    expected = (len(checks.matrix("user", user)), len(checks.matrix("item", item)))
    for name, graph in (("targets", targets), ("seen", targets if seen is None else seen)):
        if checks.instance(name, graph, Graph).shape != expected:
            raise ValueError(
                f"{name}: found {graph.shape[0]} users x {graph.shape[1]} items, "
                f"expected {expected[0]} x {expected[1]} as the embeddings have"
            )
    if not isinstance(ks, Sequence):
        raise TypeError(f"ks: found {ks!r}, expected a list of positive integers")
    if isinstance(metrics, str):
        raise TypeError(f"metrics: found {metrics!r}, expected a list of names")
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks: found {list(ks)}, expected one or more positive integers")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics: found {', '.join(unknown) or 'none'}, expected some of {', '.join(METRICS)}")
    if targets.nnz == 0:
        raise ValueError("targets: no user has an item to be found, so there is nothing to evaluate")
    check_finite(user, item)
