"""``crane data``."""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console

from crane.cli.errors import user_errors
from crane.cli.tables import plain_table
from crane.config import RunConfig, merge
from crane.console import say
from crane.data import Dataset, load_dataset


def run(arguments: argparse.Namespace) -> int:
    """Print what a data set holds and what is noticeable about it; returns the exit code."""
    with user_errors():
        settings = [f"data.path={arguments.path}", *arguments.settings]
        dataset = load_dataset(RunConfig.from_mapping(merge({}, settings)).data)
    console = Console()
    say(console, dataset.describe())
    console.print(plain_table(["check", "found"], checks(dataset)))
    return 0


def checks(dataset: Dataset) -> list[tuple[str, str]]:
    """What deserves a look before training, each with what was found."""
    n_users, n_items = dataset.n_users, dataset.n_items
    rows = [
        ("interactions a user, train", _spread(np.bincount(dataset.train.users, minlength=n_users))),
        ("interactions an item, train", _spread(np.bincount(dataset.train.items, minlength=n_items))),
    ]
    trained = np.bincount(dataset.train.items, minlength=n_items) > 0
    pairs = dataset.train.users * n_items + dataset.train.items
    for name in ("validation", "test"):
        split = getattr(dataset, name)
        rows += [
            (f"users without {name} interactions", f"{n_users - len(np.unique(split.users)):,}"),
            (f"{name} interactions with items never trained on", f"{int((~trained[split.items]).sum()):,}"),
            (
                f"{name} interactions that are training ones too",
                f"{len(np.intersect1d(pairs, split.users * n_items + split.items)):,}",
            ),
        ]
    for name, matrix in dataset.features.items():
        rows.append((f"items whose {name} features are all zero", f"{int((~matrix.any(axis=1)).sum()):,}"))
    return rows


def _spread(counts: np.ndarray) -> str:
    return f"{counts.min():,} to {counts.max():,}, median {int(np.median(counts)):,}"
