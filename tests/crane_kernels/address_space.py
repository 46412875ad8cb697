"""How much memory a call takes, by the address space of a process of its own.

That is the same in every run, where the pages that are resident are counted late. Each further thread would reserve
address space of its own, so there is one; and malloc, left to itself, finds room for large blocks where luck has it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

measured = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is Linux's to tell")

MEASURE = """
import ctypes, re
from pathlib import Path
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
ctypes.CDLL(None).malloc_trim(0)
before = status("VmSize")
run()
print(status("VmPeak") - before)
"""


def taken(program: str) -> int:
    """Bytes by which the peak during ``run()``, which ``program`` defines, exceeds what was held before."""
    fixed = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "THP_MEM_ALLOC_ENABLE": "0"}
    environment = os.environ | fixed
    command = [sys.executable, "-P", "-c", program + MEASURE]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
