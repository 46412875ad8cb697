"""The evaluation of all users against the metrics-in-Python baseline."""

from __future__ import annotations

import pytest
import torch
from baseline import evaluation as baseline
from torch import Tensor

from crane.evaluation import evaluate_split

DIM = 64


def test_evaluation_of_all_users(compare, benchmark, dataset):
    generator = torch.Generator().manual_seed(0)
    user = torch.randn(dataset.n_users, DIM, generator=generator)
    item = torch.randn(dataset.n_items, DIM, generator=generator)
    seen = baseline.by_user(dataset.train.users, dataset.train.items)
    targets = baseline.by_user(dataset.test.users, dataset.test.items)

    def usual(user: Tensor = user, item: Tensor = item) -> dict[str, float]:
        return baseline.evaluate(user, item, seen, targets)

    def ours(user: Tensor = user, item: Tensor = item) -> dict[str, float]:
        return evaluate_split(dataset, "test", user, item)

    # In float32 the order in which a dot product is summed can swap neighbours in a ranking.
    exact = user.double(), item.double()
    assert ours(*exact) == pytest.approx(usual(*exact), abs=1e-12, rel=0)
    benchmark.extra_info |= {"users": len(targets), "items": dataset.n_items, "dim": DIM}
    compare(usual, ours, at_least=8)
