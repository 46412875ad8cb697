"""``crane evaluate``."""

from __future__ import annotations

import argparse

from rich.console import Console

from crane.cli.errors import UserError, user_errors
from crane.cli.tables import metrics_table
from crane.evaluation import evaluate_split
from crane.training.environment import operations
from crane.training.run import load_run


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics of a run's best weights on a split; returns the exit code."""
    with user_errors():
        operations()  # refuses those that CRANE_IMPLEMENTATION asks for and that cannot run
        trained = load_run(arguments.run)
        evaluation = trained.config.evaluation
        # The test split is for the end: what is not finished is looked at on what chooses its epoch.
        split = arguments.split or ("validation" if trained.state.test is None else "test")
        if arguments.mask_validation and split == "validation":
            raise UserError("--mask-validation is about the test split, so it cannot be given with --split validation")
        values = evaluate_split(
            trained.dataset,
            split,
            trained.user,
            trained.item,
            mask_validation=arguments.mask_validation or evaluation.mask_validation,
            ks=evaluation.ks,
            metrics=evaluation.metrics,
        )
    title = f"{split}, epoch {trained.state.best_epoch}"
    Console().print(metrics_table(evaluation, values, title))
    return 0
