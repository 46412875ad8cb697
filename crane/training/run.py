"""Runs as they are built, and as they are read back."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from torch import Tensor

from crane.config import RunConfig
from crane.data import Dataset, load_dataset
from crane.models import MODELS, Recommender
from crane.recommend import load
from crane.seeds import weights_generator
from crane.training.checkpoint import TrainingState
from crane.training.folder import RunFolder

_TOO_LARGE = re.compile(r"allocate|overflow", re.IGNORECASE)  # what torch says of sizes, in a plain RuntimeError


@dataclass(frozen=True)
class TrainedRun:
    """A run read back from its folder, with the final embeddings of the best weights: users (U, d), items (I, d)."""

    config: RunConfig
    dataset: Dataset
    state: TrainingState
    user: Tensor
    item: Tensor


def load_run(path: str | Path) -> TrainedRun:
    """Read a run's configuration, data set and best embeddings, on the CPU; an unfinished run's model is built for it.

    Raises:
        ValueError: the folder holds no run, no epoch has been evaluated yet, or the data set is a different one now.
    """
    folder = RunFolder(Path(path))
    folder.check_run()
    state = folder.checkpoints.load_state()
    if state is None or state.best_epoch == 0:
        raise ValueError(f"the run {path} has no evaluated epoch yet: continue it with crane train --resume {path}")
    config = RunConfig.load(folder.config)
    dataset = load_dataset(config.data)
    check_same_data(state, dataset)
    if state.test is not None:  # finished, so the embeddings are in the export
        trained = load(path)
        return TrainedRun(config, dataset, state, trained.user, trained.item)
    model = build_model(config, dataset)
    folder.checkpoints.load_weights(state.best_epoch, model)
    return TrainedRun(config, dataset, state, *model.eval().embeddings())


def build_model(config: RunConfig, dataset: Dataset) -> Recommender:
    """The model of ``config`` with its initial weights, on the CPU.

    Raises:
        ValueError: what the model refuses, or it does not fit into the memory.
    """
    try:
        return MODELS[config.model](dataset, config.model_config, weights_generator(config.seed))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or _TOO_LARGE.search(str(error)):
            raise ValueError(
                f"the model {config.model} on {dataset.name} does not fit into the memory, "
                "expected smaller settings, such as model.dim"
            ) from error
        raise


def default_folder(config: RunConfig) -> Path:
    """``runs/<model>-<data>-<timestamp>``; runs started in the same second share it, so it is to be numbered."""
    return Path("runs") / f"{config.model}-{Path(config.data.path).stem}-{datetime.now():%Y%m%d-%H%M%S}"


def check_same_data(state: TrainingState, dataset: Dataset) -> None:
    """Refuse a data set that is not the one the run was trained on.

    Raises:
        ValueError: the fingerprints differ.
    """
    if state.data != fingerprint(dataset):
        raise ValueError(f"the data set {dataset.name} has changed since this run was trained: train a new run on it")


def fingerprint(dataset: Dataset) -> str:
    """A digest of ids, splits and features."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in (dataset.user_ids, dataset.item_ids):
        digest.update(f"{len(ids)} {ids.dtype}\n".encode())
        digest.update("\n".join(str(entry) for entry in ids.tolist()).encode())
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(f"{len(split)}\n".encode())
        digest.update(np.ascontiguousarray(split.users).data)
        digest.update(np.ascontiguousarray(split.items).data)
    for name, matrix in dataset.features.items():
        digest.update(f"{name} {matrix.shape}\n".encode())
        digest.update(np.ascontiguousarray(matrix).data)
    return digest.hexdigest()
