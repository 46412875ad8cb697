"""What the process keeps of the memory that it frees: by the pages that the system gives it anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
BYTES = 48 << 20
TIMES = 10
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
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
TENSOR = """
import crane.cli.train, torch
from crane_kernels import tune_memory
{call}
print(torch.empty(4 << 20, dtype=torch.uint8).data_ptr() % 4096)
"""


def run(program: str, *arguments: str, huge_pages: str | None = None) -> int:
    """What a program prints, in a process whose environment says nothing of huge pages, or this."""
    environment = {name: value for name, value in os.environ.items() if name != HUGE_PAGES}
    if huge_pages is not None:
        environment[HUGE_PAGES] = huge_pages
    command = [sys.executable, "-c", program, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_memory_that_is_freed_serves_the_next_call() -> None:
    assert 10 * run(FAULTS, "tuned") < run(FAULTS, "as it was")


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("call", "huge_pages", "aligned"), [("tune_memory()", None, True), ("tune_memory()", "0", False), ("", None, False)]
)
def test_torch_asks_for_huge_pages_in_training_unless_told_not_to(
    call: str, huge_pages: str | None, aligned: bool
) -> None:
    offset = run(TENSOR.format(call=call), huge_pages=huge_pages)  # torch aligns to pages what it has in huge ones
    assert (offset == 0) == aligned
