"""Loads the compiled libraries, if they were built, and says why not otherwise.

There are two: ``_ops.so`` registers torch operators and is loaded by the dispatcher; ``_host`` is a Python module for
what takes no tensors. Both are built together by ``setup.py``, which leaves ``_build.json`` beside them.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_FOLDER = Path(__file__).parent
OPERATORS = _FOLDER / "_ops.so"
RECORD = _FOLDER / "_build.json"


def build_record() -> dict[str, Any]:
    """What ``setup.py`` recorded about the build: ``built``, ``reason``, ``torch``, ``compiler``; empty if nothing."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _load() -> tuple[ModuleType | None, str | None]:
    if not OPERATORS.exists():
        reason = build_record().get("reason") or "it was never built here"
        return None, f"the compiled extension is not installed: {reason}"
    try:
        torch.ops.load_library(str(OPERATORS))
        return importlib.import_module("crane_kernels._host"), None
    except (OSError, ImportError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        return None, f"the compiled extension does not load: {first_line}"


_host, _missing = _load()


def missing() -> str | None:
    """Why the compiled extension cannot be used, in a phrase that follows "because"; ``None`` when it can."""
    return _missing


def host() -> ModuleType:
    """The compiled module of host-side functions.

    Raises:
        RuntimeError: the extension is missing.
    """
    if _host is None:
        raise RuntimeError(_missing)
    return _host


def instruction_set() -> str | None:
    """The instruction set the CPU kernels use: ``baseline``, ``avx2`` or ``avx512``; ``None`` without the extension.

    The best one that both the build and this processor have, or the one named by ``CRANE_ISA``.
    """
    return None if _host is None else str(_host.instruction_set())


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the build holds and this processor runs, least first; empty without the extension."""
    return () if _host is None else tuple(_host.instruction_sets())
