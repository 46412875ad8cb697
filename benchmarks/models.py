"""Our models and the same models as research code writes them, ready to train on one data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from baseline import crane as baseline_crane
from baseline import lightgcn as baseline_lightgcn
from torch import Tensor, nn

from crane.config import RunConfig
from crane.data import Dataset
from crane.training.folder import RunFolder
from crane.training.trainer import Trainer

BASELINES: dict[str, Callable[..., nn.Module]] = {
    "lightgcn": baseline_lightgcn.LightGCN,
    "crane": baseline_crane.CRANE,
}
BEFORE_RELU = ("w_joint", "b_joint", "w_attend", "projection")  # in the names of parameters


def make_trainer(model: str, dataset: Dataset, folder: Path) -> Trainer:
    """Our trainer, on the device it chooses."""
    config = RunConfig.from_mapping({"model": model})
    run = RunFolder(folder / "run")
    run.create(config, {})
    return Trainer(config, dataset, run)


def loss_and_gradients(model: nn.Module, loss: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The loss of a batch and its gradient for every parameter, by name."""
    model.zero_grad()
    total = loss(*batch)
    total.backward()
    gradients = {name.removesuffix(".weight"): parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": total.detach(), **gradients}


def check_equal(trainer: Trainer, usual: nn.Module) -> None:
    """Same loss, same gradients: a ratio of times means nothing otherwise.

    Gradients are compared in root mean square, and less closely where they come through the relu of the recursions:
    of tens of thousands of rows, rounding can move one across its zero, in research code's own arithmetic too.
    """
    batch = some_triples(trainer)
    ours = loss_and_gradients(trainer.model, lambda *triples: trainer.model.loss(*triples).total, batch)
    theirs = loss_and_gradients(usual, usual.calculate_loss, batch)
    for name, expected in theirs.items():
        tolerance = 2e-3 if any(part in name for part in BEFORE_RELU) else 1e-5
        error, norm = float((ours[name] - expected).norm()), float(expected.norm())
        assert norm > 0, name
        assert error <= tolerance * norm, f"{name} is off by {error / norm:.1e} of its norm"


def some_triples(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor]:
    """Of the first batch, one triple of each user that has other training items too.

    Profiles leave out the batch's items; what is left of a user without others is the rounding error of the order of
    summation.
    """
    users, positives, negatives = next(iter(trainer.sampler.epoch(1)))
    first = torch.from_numpy(np.unique(users.numpy(), return_index=True)[1])
    kept = first[trainer.sampler.graph.degrees()[users[first]] > 1]
    return users[kept], positives[kept], negatives[kept]
