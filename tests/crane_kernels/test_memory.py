"""What the process keeps of the memory that it frees: by the pages that the system gives it anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
BYTES = 48 << 20
TIMES = 10
FAULTS = f"""
import resource, sys, torch
from crane_kernels import tune_memory
if sys.argv[1] == "tuned":
    assert tune_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    torch.ones({BYTES}, dtype=torch.uint8)
before = faults()
for _ in range({TIMES}):
    torch.ones({BYTES}, dtype=torch.uint8)
print(faults() - before)
"""


def faults(how: str) -> int:
    """Pages given to a process that asks for the same memory again and again."""
    result = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_memory_that_is_freed_serves_the_next_call() -> None:
    assert 10 * faults("tuned") < faults("as it was")


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_huge_pages_are_asked_for_unless_somebody_has_decided(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if before is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", before)
    program = "import os, crane_kernels; crane_kernels.tune_memory(); print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == after
