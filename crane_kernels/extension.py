"""Loads the compiled libraries, if they were built, and says why not otherwise.

There are three: ``_ops.so`` registers torch operators; ``_ops_cuda.so`` registers their CUDA kernels, where nvcc and a
CUDA build of torch were there to build it; ``_host`` is a Python module for what takes no tensors. All are built
together by ``setup.py``, which leaves ``_build.json`` beside them.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_FOLDER = Path(__file__).parent
OPERATORS = _FOLDER / "_ops.so"
CUDA_OPERATORS = _FOLDER / "_ops_cuda.so"
RECORD = _FOLDER / "_build.json"
DTYPES = (torch.float32, torch.float64)  # of the kernels that take no half precision
# What is called here: a library of another version may lack some of it.
EXPECTED_OPERATORS = (
    "spmm",
    "spmm_t",
    "spmm_max",
    "sddmm",
    "propagate",
    "propagate_t",
    "sort_edges",
    "transpose",
    "masked_topk",
    "info_nce",
    "info_nce_backward",
    "modality_attention",
    "modality_attention_backward",
    "items_attention",
    "items_attention_backward",
    "recursive_cross_modal_attention",
    "recursive_cross_modal_attention_backward",
)
EXPECTED_FUNCTIONS = ("instruction_set", "instruction_sets", "prune_edges", "sample_negatives")


def build_record() -> dict[str, Any]:
    """What ``setup.py`` recorded about the build: ``built``, ``reason``, ``torch``, ``compiler``; empty if nothing.

    ``cuda`` is the record of the CUDA kernels: ``built``, ``reason``, ``nvcc``, ``architectures`` and ``kernels``, a
    list of name, architecture, registers, spilled bytes.
    """
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
        torch.ops.load_library(str(OPERATORS))  # type: ignore[no-untyped-call]
        host = importlib.import_module("crane_kernels._host")
    except (OSError, ImportError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        return None, f"the compiled extension does not load: {first_line}"
    operators = all(hasattr(torch.ops.crane_kernels, name) for name in EXPECTED_OPERATORS)
    if not operators or not all(hasattr(host, name) for name in EXPECTED_FUNCTIONS):
        return None, "the compiled extension was built from another version of the source: build it again"
    host.instruction_set()  # a wrong CRANE_ISA is an error at once
    return host, None


def _load_cuda() -> str | None:
    if _missing is not None:
        return _missing
    if not CUDA_OPERATORS.exists():
        reason = build_record().get("cuda", {}).get("reason") or "they were never built here"
        return f"the CUDA kernels are not installed: {reason}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    try:
        torch.ops.load_library(str(CUDA_OPERATORS))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        return f"the CUDA kernels do not load: {first_line}"
    return None


_host, _missing = _load()
_cuda_missing = _load_cuda()
_no_device = None if torch.cuda.device_count() else "there is no CUDA device"


def refuses(name: str, x: Tensor) -> str | None:
    """Why no compiled CPU kernel for float32 and float64 takes ``x``, called ``name``; ``None`` when they do."""
    if x.device.type != "cpu":
        return f"{name} is on device {x.device}, not on the CPU"
    if x.dtype not in DTYPES:
        return f"{name} has dtype {x.dtype}, not float32 or float64"
    return None


def refuses_derivatives() -> str | None:
    """Which derivatives the compiled operators of any device lack at the moment; ``None`` when none."""
    if forward_ad._current_level >= 0:  # a custom operator would take every tangent for zero
        return "forward-mode differentiation is under way"
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        stack = torch._C._functorch.get_interpreter_stack() or []
        if any(level.key() == torch._C._functorch.TransformType.Grad for level in stack):
            return "torch.func differentiates, which custom operators do not support"
    return None


def missing() -> str | None:
    """Why the compiled extension cannot be used, in a phrase that follows "because"; ``None`` when it can."""
    return _missing


def cuda_missing() -> str | None:
    """Why the CUDA kernels cannot be used, in a phrase that follows "because"; ``None`` when they can."""
    return _cuda_missing or _no_device


def cuda_description() -> str:
    """The CUDA kernels in one line: what they were built with and for, or why there are none."""
    if _cuda_missing is not None:
        return f"none: {_cuda_missing}"
    cuda = build_record().get("cuda", {})
    targets = []
    for number, _, kind in (name.partition("-") for name in cuda.get("architectures", [])):
        targets += [f"sm_{number}"] * (kind != "virtual") + [f"PTX {number}"] * (kind != "real")
    return f"built with nvcc {cuda.get('nvcc', '?')} for {', '.join(targets)}"


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
