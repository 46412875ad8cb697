"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crane_kernels import extension

LARGE_TENSOR = 12  # GB that tests of more than 2^31 elements want to find free; they take half of it


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


@pytest.fixture
def large_memory() -> None:
    """Skips a test of tensors with more than 2^31 elements where memory for them is not known to be free."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.exists() else []
    available = sum(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1e6
    if available < LARGE_TENSOR:
        pytest.skip(f"{available:.0f} GB of memory known to be available, {LARGE_TENSOR} GB wanted")
