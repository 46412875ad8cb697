"""One training step, forward, backward and optimiser, against the same model written as research code is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from measuring import Measure, anything
from models import BASELINES, check_equal, make_trainer
from torch import Tensor, nn

from crane.data import Dataset

OPERATION = "step"
SCALES, REAL_DATA = ("baby",), True
NOT_AT_LARGEST = ("crane",)  # which compares all items with each other


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...]) -> None:
    optimizer.zero_grad()
    model.calculate_loss(*batch).backward()
    optimizer.step()


@pytest.mark.parametrize("model", BASELINES)
def test_step(model: str, measure: Measure, dataset: Dataset, tmp_path: Path) -> None:
    trainer = make_trainer(model, dataset, tmp_path)
    usual = BASELINES[model](dataset, trainer.model)
    check_equal(trainer, usual)
    optimizer = torch.optim.Adam(usual.parameters(), lr=trainer.config.training.learning_rate)
    batch = next(iter(trainer.sampler.epoch(1)))
    trainer._begin(1)
    measure(
        partial(trainer._step, 1, 0, batch),
        {"research code": partial(plain_step, usual, optimizer, batch)},
        case=model,
        size=len(dataset.train),
        unit="training pairs",
        agree=anything,
    )
