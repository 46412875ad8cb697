"""What the process keeps of the memory that it frees: by the pages that the system gives it anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
BYTES = 48 << 20
FIRST, TIMES = 40, 10  # malloc needs some before it finds what was freed
FAULTS = f"""
import resource, sys, torch
from crane_kernels import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({FIRST}):
    torch.ones({BYTES}, dtype=torch.uint8)
before = faults()
for _ in range({TIMES}):
    torch.ones({BYTES}, dtype=torch.uint8)
print(faults() - before)
"""


def faults(keep: str) -> int:
    """Pages given to a process that asks for the same memory again and again."""
    result = subprocess.run([sys.executable, "-c", FAULTS, keep], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_keep_freed_memory() -> None:
    assert 10 * faults("keep") < faults("do not")
