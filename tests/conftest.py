"""Where there is no GPU, Triton's kernels run in its interpreter, which must be said before anything imports Triton."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

# Tests that share what takes a minute or more to compile: with ``-n``, one process runs them, and once.
TOGETHER = (
    "tests/crane_kernels/sanitizers/",
    "tests/crane_kernels/cuda/",
    "tests/crane_kernels/triton_kernels/test_compile_matrix.py",
    "tests/crane_kernels/triton_kernels/test_traced_kernels.py",
)

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


def pytest_configure(config: pytest.Config) -> None:
    """With ``-n``, threads that wait must sleep: the other processes' tests need the cores (gcc's OpenMP spins)."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, tests go one by one to whichever process is free, those of a place in TOGETHER to one and first."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)

    return Scheduling(config, log)
