"""The learning rate over time."""

from __future__ import annotations

import math

from crane.config import TrainingConfig


def learning_rate_factor(training: TrainingConfig, before: float, after: float) -> float:
    """What the learning rate is multiplied by in a step that leads from ``before`` to ``after`` epochs (fractions)."""
    return _warmup(training, after) * _decay(training, before)


def _warmup(training: TrainingConfig, epochs_done: float) -> float:
    if epochs_done >= training.warmup_epochs:
        return 1.0
    return epochs_done / training.warmup_epochs


def _decay(training: TrainingConfig, epochs_done: float) -> float:
    if training.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, epochs_done / training.epochs)))
    if training.schedule == "step":
        return training.decay_factor ** (int(epochs_done) // training.decay_epochs)
    return 1.0
