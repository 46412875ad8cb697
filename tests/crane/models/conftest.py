"""Small data sets with features of any number of modalities."""

from collections.abc import Callable

import numpy as np
import pytest

from crane.data import Dataset, Interactions

N_USERS, N_ITEMS, N_GROUPS = 40, 30, 3


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """Makes a data set of users who choose items of their own group, which the features of each modality reveal."""
    return _make_dataset


def _make_dataset(*modalities: str) -> Dataset:
    generator = np.random.default_rng(0)
    group = np.arange(N_ITEMS) % N_GROUPS
    pairs = []
    for user in range(N_USERS):
        weight = np.where(group == user % N_GROUPS, 10.0, 1.0)
        pairs += [(user, item) for item in generator.choice(N_ITEMS, size=7, replace=False, p=weight / weight.sum())]
    users, items = np.array(pairs).T
    held_out = np.arange(len(users)) % 7
    features = {
        name: (
            np.eye(N_GROUPS)[group] @ generator.normal(size=(N_GROUPS, width))
            + generator.normal(size=(N_ITEMS, width)) / 4
        )
        for width, name in enumerate(modalities, start=5)
    }
    splits = [
        Interactions.from_pairs(users[part], items[part]) for part in (held_out > 1, held_out == 1, held_out == 0)
    ]
    return Dataset(
        "groups",
        np.arange(N_USERS),
        np.arange(N_ITEMS),
        *splits,
        features={name: matrix.astype(np.float32) for name, matrix in features.items()},
    )
