"""A small data set of files, for tests that go from files to results."""

from pathlib import Path

import numpy as np
import pytest

N_USERS, N_ITEMS, N_GROUPS = 60, 40, 4


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 users and 40 items in four groups: users mostly choose items of their own group."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["user,item"]
    for user in range(N_USERS):
        weight = np.where(np.arange(N_ITEMS) % N_GROUPS == user % N_GROUPS, 10.0, 1.0)
        items = generator.choice(N_ITEMS, size=10, replace=False, p=weight / weight.sum())
        lines += [f"u{user},i{item}" for item in items]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    return folder
