"""Fixtures of the Triton kernels' tests, which run in Triton's interpreter on the CPU, or on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from crane_kernels import triton_support


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    """Put the interpreter right, and fill uninitialised memory with NaN so that an element never written shows."""
    with pytest.MonkeyPatch.context() as patch:
        if triton_support.interpreting():
            from interpreter import correct, hasten

            correct(patch)
            hasten(patch)
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run."""
    return "cpu" if triton_support.interpreting() else "cuda"


@pytest.fixture
def counting() -> None:
    """Skips a test of counted bytes and launches on a GPU: the interpreter counts them."""
    if not triton_support.interpreting():
        pytest.skip("the interpreter counts bytes; the kernels run on a GPU here")
