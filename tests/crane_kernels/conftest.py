"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from crane_kernels import extension


@pytest.fixture
def compiled() -> None:
    """Skips a test of the compiled kernels where they were not built, and says why they were not."""
    reason = extension.missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """Uninitialised tensors are filled with NaN, so that an element never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
