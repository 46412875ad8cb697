"""Full-ranking evaluation over batches of users, with hits and metrics computed user by user, as MMRec does.

The steps are those of MMRec's evaluator: the score matrix of a batch of users, training items overwritten through
index lists, ``torch.topk``, then a list comprehension a user that looks every ranked item up in the user's array of
targets.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

METRICS = ("recall", "ndcg", "precision", "map", "hitrate", "mrr")

Lists = dict[int, np.ndarray]


def evaluate(
    user: Tensor,
    item: Tensor,
    seen: Lists,
    targets: Lists,
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
    batches = [users[start : start + batch_size] for start in range(0, len(users), batch_size)]
    ranked = torch.cat([rank(user, item, seen, batch, max(ks)) for batch in batches]).cpu().numpy()
    hits = [[i in targets[u] for i in items] for u, items in zip(users, ranked, strict=True)]
    curves = [user_curves(np.asarray(row), len(targets[u])) for u, row in zip(users, hits, strict=True)]
    means = np.mean(curves, axis=0)
    return {f"{name}@{k}": float(means[row, k - 1]) for row, name in enumerate(METRICS) for k in ks}


def rank(user: Tensor, item: Tensor, seen: Lists, batch: list[int], k: int) -> Tensor:
    """(len(batch), k) the best items of each user."""
    scores = user[torch.tensor(batch)] @ item.T
    rows = np.repeat(np.arange(len(batch)), [len(seen[u]) for u in batch])
    columns = np.concatenate([seen[u] for u in batch])
    scores[torch.from_numpy(rows), torch.from_numpy(columns)] = -1e10
    return torch.topk(scores, k, dim=-1).indices


def user_curves(hits: np.ndarray, n_targets: int) -> np.ndarray:
    """(6, K) the metrics of one user at every cut-off; ``hits`` says of each rank whether it holds a target."""
    ranks = np.arange(1, len(hits) + 1)
    fits = np.minimum(ranks, n_targets)
    found = np.cumsum(hits)
    discount = 1 / np.log2(ranks + 1)
    gain, ideal = np.cumsum(hits * discount), np.cumsum(discount)[fits - 1]
    precision = found / ranks
    hit = (found > 0).astype(np.float64)
    average = np.cumsum(hits * precision) / fits
    return np.stack([found / n_targets, gain / ideal, precision, average, hit, hit / (np.argmax(hits) + 1)])


def by_user(users: np.ndarray, items: np.ndarray) -> Lists:
    """The items of each user that has any, from interactions sorted by user."""
    present, starts = np.unique(users, return_index=True)
    return dict(zip(present.tolist(), np.split(items, starts[1:]), strict=True))
