"""Peak memory of a call: on a GPU by torch's allocator, else by the process's own high-water mark.

The operating system counts every page the process touches, whoever asked for it: torch, numpy, C++ or Python. What
was freed before is given back first, so that it is not used again unseen; pages make small numbers rough.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESET_HIGH_WATER_MARK = "5"


def peak(run: Callable[[], Any], device: str) -> tuple[Any, int | None]:
    """The result of ``run`` and the most bytes held during it beyond those held before, results included.

    The bytes are None where the system has no such mark (it is Linux's).
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return run(), None
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(RESET_HIGH_WATER_MARK)
    except OSError:
        return run(), None
    before = _status("VmRSS")
    result = run()
    return result, max(0, _status("VmHWM") - before)


def available(device: str) -> float:
    """Bytes that can be had without taking them from other processes; infinity where the system does not tell."""
    if device != "cpu":
        return float(torch.cuda.mem_get_info()[0])
    return _line("/proc/meminfo", "MemAvailable") if sys.platform.startswith("linux") else math.inf


def _status(name: str) -> int:
    return _line("/proc/self/status", name)


def _line(file: str, name: str) -> int:
    """A line of what the kernel tells, in bytes."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file}: found no {name}")
