"""An epoch of training, as the trainer runs it, against the same model written as research code is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from baseline.training import Sampler, train_epoch
from measuring import Measure, anything
from models import BASELINES, check_equal, make_trainer

from crane.data import Dataset

OPERATION = "epoch"
SCALES, QUICK_SCALES, REAL_DATA = ("baby",), ("demo",), True


@pytest.mark.parametrize("model", BASELINES)
def test_epoch(model: str, measure: Measure, dataset: Dataset, tmp_path: Path, quick: bool) -> None:
    trainer = make_trainer(model, dataset, tmp_path)
    usual = BASELINES[model](dataset, trainer.model)
    check_equal(trainer, usual)
    training, pairs = trainer.config.training, dataset.train
    optimizer = torch.optim.Adam(usual.parameters(), lr=training.learning_rate)
    sampler = Sampler(pairs.users, pairs.items, dataset.n_items, training.batch_size, seed=0)
    measure(
        partial(trainer._train, 1),
        {"research code": partial(train_epoch, usual, optimizer, sampler)},
        case=model,
        size=len(pairs),
        unit="training pairs",
        agree=anything,
        warm_up=quick,
        rounds=None if quick else 3,
    )
