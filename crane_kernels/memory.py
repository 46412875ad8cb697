"""The memory of the process between one call and the next."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # of torch: tensors of 2 MiB and more


def tune_memory() -> bool:
    """Let the process keep the memory that it frees for what it asks for next, and have large tensors in huge pages.

    Otherwise glibc's malloc gives large tensors back to the system as they are freed, in any case those above 32 MiB,
    and the same memory comes back with the next product: page by page, each cleared anew, which takes as long as
    the product itself. Training is what gains, on the CPU, where embeddings are large. Until the process ends; in other
    threads than the main one, what is above 64 MiB is given back as before. Call it before the first tensor is made, as
    torch looks for its setting only then (``THP_MEM_ALLOC_ENABLE``, which is left as it is where it is set).

    Returns:
        Whether this was possible: on Linux with glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None or not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1)):
        return False
    os.environ.setdefault(_HUGE_PAGES, "1")
    return True
