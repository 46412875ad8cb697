"""Where there is no GPU, Triton's kernels run in its interpreter, which must be said before anything imports Triton."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


def pytest_configure(config: pytest.Config) -> None:
    """With ``-n``, threads that wait must sleep: the other processes' tests need the cores (gcc's OpenMP spins)."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
