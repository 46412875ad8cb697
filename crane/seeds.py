"""Random numbers that depend on nothing but the run's seed, the epoch and their purpose.

An interrupted run therefore continues with the numbers it would have drawn, and no generator state is ever saved.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers are drawn for; each purpose has its own stream."""

    WEIGHTS = 0
    SAMPLING = 1
    MODEL = 2
    TORCH = 3


def numpy_generator(seed: int, epoch: int, purpose: Purpose) -> np.random.Generator:
    """The generator of one epoch and purpose."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, int(purpose)]))


def torch_seed(seed: int, epoch: int, purpose: Purpose) -> int:
    """A 63-bit seed of one epoch and purpose, for torch."""
    state = np.random.SeedSequence([seed, epoch, int(purpose)]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def weights_generator(seed: int) -> torch.Generator:
    """The generator of a model's initial weights (on the CPU, so that they do not depend on the device)."""
    return torch.Generator().manual_seed(torch_seed(seed, 0, Purpose.WEIGHTS))
