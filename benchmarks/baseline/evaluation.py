"""Full-ranking evaluation over batches of users, with the metrics computed user by user in Python."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


def evaluate(
    user: Tensor,
    item: Tensor,
    seen: dict[int, list[int]],
    targets: dict[int, set[int]],
    ks: tuple[int, ...] = (5, 10, 20, 50),
    batch_size: int = 4096,
) -> dict[str, float]:
    """Rank all items but the seen ones for the users that have targets; mean of every metric over them.

    Args:
        user: (U, d) user embeddings.
        item: (I, d) item embeddings.
        seen: items of each user not to rank.
        targets: items of each user to be found; users without any are absent.
        ks: cut-offs.
        batch_size: users whose scores over all items are held at once.
    """
    users = sorted(targets)
    sums: dict[str, float] = defaultdict(float)
    for start in range(0, len(users), batch_size):
        batch = users[start : start + batch_size]
        ranked = _rank(user, item, seen, batch, max(ks))
        for u, items in zip(batch, ranked, strict=True):
            hits = [1 if i in targets[u] else 0 for i in items]
            for k in ks:
                for name, value in user_metrics(hits, len(targets[u]), k).items():
                    sums[f"{name}@{k}"] += value
    return {key: total / len(users) for key, total in sums.items()}


def _rank(user: Tensor, item: Tensor, seen: dict[int, list[int]], batch: list[int], k: int) -> list[list[int]]:
    scores = user[torch.tensor(batch)] @ item.T
    rows = [row for row, u in enumerate(batch) for _ in seen.get(u, [])]
    columns = [i for u in batch for i in seen.get(u, [])]
    scores[rows, columns] = -1e10
    return torch.topk(scores, k, dim=1).indices.tolist()


def user_metrics(hits: list[int], n_targets: int, k: int) -> dict[str, float]:
    """The six metrics of one user at one cut-off; ``hits`` holds 1 at each rank that is a target."""
    top = hits[:k]
    found = sum(top)
    fits = min(n_targets, k)
    first, gain, precisions, so_far = 0.0, 0.0, 0.0, 0
    for rank, hit in enumerate(top, start=1):
        if hit:
            so_far += 1
            first = first or 1 / rank
            gain += 1 / math.log2(rank + 1)
            precisions += so_far / rank
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, fits + 1))
    return {
        "recall": found / n_targets,
        "ndcg": gain / ideal,
        "precision": found / k,
        "map": precisions / fits,
        "hitrate": 1.0 if found else 0.0,
        "mrr": first,
    }


def as_lists(users: np.ndarray, items: np.ndarray) -> dict[int, list[int]]:
    """Interactions as the items of each user."""
    lists: dict[int, list[int]] = defaultdict(list)
    for u, i in zip(users.tolist(), items.tolist(), strict=True):
        lists[u].append(i)
    return dict(lists)
