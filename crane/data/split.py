"""Splitting each user's interactions into training, validation and test."""

from __future__ import annotations

import numpy as np

TRAIN, VALIDATION, TEST = 0, 1, 2


def split_sizes(counts: np.ndarray, ratios: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """How many of ``counts`` interactions of a user go to validation and to test.

    Shares are rounded down. A share above 0 that rounds to none gets one, test before validation, as long as one
    is left for training: with 8:1:1, one interaction is for training, two give one test, three to nineteen give one
    validation and one test, twenty give two of each.

    Args:
        counts: (U,) int64, interactions of each user.
        ratios: shares of training (above 0), validation and test, in any scale.

    Returns:
        (U,) int64 sizes of validation and of test; ``counts`` less both, and at least 1, are for training.
    """
    total = sum(ratios)
    rest = np.maximum(counts - 1, 0)
    sizes = []
    for ratio in (ratios[TEST], ratios[VALIDATION]):
        share = np.floor(counts * (ratio / total) + 1e-9).astype(np.int64)  # 0.1 * 30 may fall short of 3
        sizes.append(np.minimum(np.maximum(share, int(ratio > 0)), rest))
        rest = rest - sizes[-1]
    return sizes[1], sizes[0]


def split_interactions(
    users: np.ndarray, ratios: tuple[float, float, float], *, times: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Label each interaction as training, validation or test, user by user.

    Args:
        users: (E,) int64 user indices.
        ratios: shares of training, validation and test, in any scale (see :func:`split_sizes`).
        times: (E,) numbers; a user's oldest interactions are for training and the latest for test, equal times in the
            order given. ``None`` splits at random.
        seed: of the random split.

    Returns:
        (E,) int64 of 0 (training), 1 (validation), 2 (test). Every user has at least one 0.
    """
    if not len(users):
        return np.zeros(0, dtype=np.int64)
    if times is None:
        shuffled = np.random.default_rng(seed).permutation(len(users))
        order = shuffled[np.argsort(users[shuffled], kind="stable")]
    else:
        order = np.lexsort((times, users))
    counts = np.bincount(users)
    n_validation, n_test = split_sizes(counts, ratios)
    from_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(users))  # 1 for a user's last interaction
    user = users[order]
    labels = np.where(from_end <= n_test[user], TEST, VALIDATION)
    labels[from_end > (n_test + n_validation)[user]] = TRAIN
    result = np.empty(len(users), dtype=np.int64)
    result[order] = labels
    return result
