"""The memory of the process between one call and the next."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, until it ends, for what it asks for next.

    Otherwise glibc's malloc gives large tensors back to the system as they are freed, at the latest those above 32 MiB,
    and the same memory comes back with the next product: page by page, each cleared anew, which takes as long as
    the product itself. Training is what gains, on the CPU, where embeddings are large; the process holds more: what it
    held at most, and what no later request fits into. For the whole process, once, best before anything large is made.

    Returns:
        Whether this was possible: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
