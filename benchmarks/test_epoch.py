"""An epoch of training, as the trainer runs it, against the same model written as research code is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from baseline import lightgcn as baseline_lightgcn
from baseline.training import Sampler, train_epoch
from torch import Tensor, nn

from crane.config import RunConfig
from crane.data import Dataset
from crane.training.run import RunFolder
from crane.training.trainer import Trainer

BASELINES: dict[str, Callable[..., nn.Module]] = {"lightgcn": baseline_lightgcn.LightGCN}


def make_trainer(model: str, dataset: Dataset, folder: Path) -> Trainer:
    config = RunConfig.from_mapping({"model": model})
    run = RunFolder(folder / "run")
    run.create(config, {})
    return Trainer(config, dataset, run)


def loss_and_gradients(model: nn.Module, loss: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> list[Tensor]:
    """The loss of a batch and its gradient for every parameter, by the size of the parameter."""
    model.zero_grad()
    total = loss(*batch)
    total.backward()
    return [total.detach(), *(parameter.grad for parameter in model.parameters())]


def check_equal(trainer: Trainer, usual: nn.Module) -> None:
    batch = next(iter(trainer.sampler.epoch(1)))
    ours = loss_and_gradients(trainer.model, lambda *triples: trainer.model.loss(*triples).total, batch)
    theirs = loss_and_gradients(usual, usual.calculate_loss, batch)
    for a, b in zip(ours, theirs, strict=True):
        assert a.norm() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize(("model", "at_least"), [("lightgcn", 5)])
def test_epoch(model, at_least, compare, benchmark, dataset, tmp_path):
    trainer = make_trainer(model, dataset, tmp_path)
    usual = BASELINES[model](dataset, trainer.model)
    check_equal(trainer, usual)

    training = trainer.config.training
    optimizer = torch.optim.Adam(usual.parameters(), lr=training.learning_rate)
    pairs = dataset.train
    sampler = Sampler(pairs.users, pairs.items, dataset.n_items, training.batch_size, seed=0)
    benchmark.extra_info |= {"users": dataset.n_users, "items": dataset.n_items, "pairs": len(pairs)}
    benchmark.extra_info |= {"batch_size": training.batch_size}
    compare(lambda: train_epoch(usual, optimizer, sampler), lambda: trainer._train(1), at_least, rounds=3)
