"""An epoch of training, as the trainer runs it, against the same model written as research code is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from baseline.training import Sampler, train_epoch
from measuring import Measure, anything
from models import BASELINES, check_equal, make_trainer
from scales import part_of

from crane.data import Dataset

OPERATION = "epoch"
SCALES, QUICK_SCALES, REAL_DATA = ("baby",), ("demo",), True
NOT_AT_LARGEST = ("test_epoch",)


@pytest.mark.parametrize("model", BASELINES)
def test_epoch(model: str, measure: Measure, dataset: Dataset, tmp_path: Path, quick: bool, in_full: bool) -> None:
    trainer = make_trainer(model, dataset, tmp_path)
    usual = BASELINES[model](dataset, trainer.model)
    check_equal(trainer, usual)
    training, whole = trainer.config.training, quick or in_full
    pairs = dataset.train if whole else part_of(dataset.train)
    optimizer = torch.optim.Adam(usual.parameters(), lr=training.learning_rate)
    sampler = Sampler(dataset.train.users, dataset.train.items, dataset.n_items, training.batch_size, seed=0)
    sampler.users, sampler.items = pairs.users, pairs.items
    trainer.sampler.users, trainer.sampler.items = torch.from_numpy(pairs.users), torch.from_numpy(pairs.items)
    measure(
        partial(trainer._train, 1),
        {"research code": partial(train_epoch, usual, optimizer, sampler)},
        case=model if whole else f"{model}, part of an epoch",
        size=len(pairs),
        unit="training pairs",
        agree=anything,
        warm_up=quick,
        rounds=None if quick else 3,
    )
