"""The evaluation of users against the metrics-in-Python baseline."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from baseline import evaluation as baseline
from measuring import Measure
from scales import part_of
from torch import Tensor

from crane.data import Dataset
from crane.evaluation import evaluate_split

OPERATION = "evaluation"
SCALES, QUICK_SCALES, REAL_DATA = ("baby",), ("demo",), True
NOT_AT_LARGEST = ("test_evaluation",)
DIM = 64


def close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """In float32 the order in which a dot product is summed can swap neighbours in a ranking."""
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_evaluation(measure: Measure, dataset: Dataset, quick: bool, in_full: bool) -> None:
    whole = quick or in_full
    if not whole:
        dataset = dataclasses.replace(dataset, test=part_of(dataset.test))
    generator = torch.Generator().manual_seed(0)
    user = torch.randn(dataset.n_users, DIM, generator=generator)
    item = torch.randn(dataset.n_items, DIM, generator=generator)
    seen = baseline.by_user(dataset.train.users, dataset.train.items)
    targets = baseline.by_user(dataset.test.users, dataset.test.items)

    def usual(user: Tensor = user, item: Tensor = item) -> dict[str, float]:
        return baseline.evaluate(user, item, seen, targets)

    measure(
        partial(evaluate_split, dataset, "test", user, item),
        {"metrics in Python": usual},
        case="" if whole else "part of the users",
        size=len(targets) * dataset.n_items,
        unit="users times items",
        agree=close,
        warm_up=quick,
        rounds=None if quick else 3,
    )
