"""What the operations' Triton kernels share: whether they can run here, their compilation, registration and tuning.

This module imports without Triton. The kernels of an operation are in its ``triton.py``, which imports Triton and is
imported by :func:`implementation` where Triton is. With ``TRITON_INTERPRET=1`` in the environment when Python starts,
Triton's interpreter runs the kernels on CPU tensors, for the calls that ask for ``implementation="triton"``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.dispatch import Implementation

OLDEST = (3, 7)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 256
# The interpreter of Triton 3.8 multiplies the bit patterns of bfloat16 and rounds to it toward zero.
INTERPRETED_DTYPES = {torch.float32, torch.float16}


def _import() -> str | None:
    try:
        version = str(importlib.import_module("triton").__version__)
    except (ImportError, AttributeError):
        return "Triton is not installed"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is installed, and {'.'.join(map(str, OLDEST))} or newer is needed"
    return None


_absent = _import()
_interpreting = _absent is None and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
_no_device = None if torch.cuda.device_count() else "there is no CUDA or HIP device"


def absent() -> str | None:
    """Why Triton cannot be imported, in a phrase that follows "because"; ``None`` when it can."""
    return _absent


def missing() -> str | None:
    """Why the Triton kernels cannot be used, in a phrase that follows "because"; ``None`` when they can."""
    return _absent or (None if _interpreting else _no_device)


def unasked() -> str | None:
    """Why the kernels serve no call that does not ask for them, as they run in the interpreter; ``None`` when not."""
    return "Triton's interpreter serves only the calls that ask for it" if _interpreting else None


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    return _interpreting


def implementation(module: str, function: str) -> Implementation:
    """The Triton implementation of an operation: ``function`` and ``refuses`` of ``module``, imported if it can be."""
    if _absent is not None:
        return Implementation("triton", _never, missing=missing)
    kernels = importlib.import_module(module)
    return Implementation("triton", getattr(kernels, function), missing, kernels.refuses, unasked)


def _never(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError(f"the Triton kernels cannot run because {_absent}")


def refuses(name: str, x: Tensor, width: int) -> str | None:
    """Why no kernel can compute on ``x`` (called ``name``) with rows of that width; ``None`` when they can."""
    if x.device.type != ("cpu" if _interpreting else "cuda"):
        where = "the CPU, where Triton's interpreter runs" if _interpreting else "a CUDA or HIP device"
        return f"{name} is on device {x.device}, not on {where}"
    if x.dtype not in DTYPES:
        return f"{name} has dtype {x.dtype}, not float32, bfloat16 or float16"
    if _interpreting and x.dtype not in INTERPRETED_DTYPES:
        return f"{name} has dtype {x.dtype}, which Triton's interpreter computes wrongly"
    if width > WIDEST:
        return f"{name} has width {width}, above {WIDEST}"
    return extension.refuses_derivatives()


def autocast(first: Tensor, *others: Any) -> tuple[Any, ...]:
    """The tensors in autocast's dtype, where autocast is on for the first's device; as torch has it, float64 stays.

    Beside a first of float64 all stay, and what is no floating-point tensor always does: checks that follow name it.
    """
    device = first.device.type
    if not _autocasts(device) or first.dtype == torch.float64:
        return first, *others
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) if _casts(tensor) else tensor for tensor in (first, *others))


def _casts(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Within the block, autocast is off for the device of ``like``; where it is off already, graphs show no block."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)  # which raises for that device


def in_chunks(n: int, programs: int, smallest: int) -> tuple[int, int]:
    """Rows of a chunk and the number of chunks: at most ``programs``, each but the last of ``smallest`` or more."""
    chunk = max(smallest, -(-n // (16 * programs)) * 16)
    return chunk, max(1, -(-n // chunk))


def padded(width: int) -> int:
    """The width of the tiles that hold rows of ``width``: a power of two, and at least the 16 of a tensor core."""
    return max(16, 1 << (width - 1).bit_length())


def input_precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies ``dtype``: float32 in tf32 where torch's own setting for matrix products says so."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@dataclass(frozen=True)
class Kernel:
    """A kernel as the compile matrix sees it.

    ``specimens(dtype, width)`` lists arguments to compile it for at rows of that dtype and width (names to values):
    ``"*fp32"``, ``"i32"`` and the like are the types of run-time arguments, whatever else is a compile-time constant.
    Pointers' types may be ``"*x"``, a pointer to ``dtype``.
    """

    name: str
    function: Any
    configs: tuple[Any, ...]
    specimens: Callable[[torch.dtype, int], Iterable[Mapping[str, Any]]]


KERNELS: list[Kernel] = []


def config(num_warps: int, num_stages: int = 2, maxnreg: int | None = None, **constants: int) -> Any:
    """A way to compile a kernel: its own constants, the warps of a program and the stages of a pipelined loop.

    ``maxnreg``: registers that a thread may have on NVIDIA's chips, where their compiler would rather spill than use
    them all.
    """
    from triton import Config

    most = None if torch.version.hip else maxnreg  # no option of AMD's compiler
    return Config(constants, num_warps=num_warps, num_stages=num_stages, maxnreg=most)


def kernel(
    specimens: Callable[[torch.dtype, int], Iterable[Mapping[str, Any]]], configs: list[Any], key: list[str]
) -> Callable[[Callable[..., None]], Any]:
    """Decorator: compile by Triton, tune over ``configs`` for each value of the arguments in ``key``, list in KERNELS.

    Nothing is compiled before the first launch. The first launch of each key and dtypes times every configuration, and
    Triton keeps the result on disk: a kernel must not write what it reads. The interpreter takes the first
    configuration and times nothing.
    """

    def decorate(function: Callable[..., None]) -> Any:
        import triton

        compiled = triton.jit(function)
        KERNELS.append(Kernel(function.__name__, compiled, tuple(configs), specimens))
        chosen = configs[:1] if _interpreting else configs
        return triton.autotune(chosen, key=key, cache_results=True)(compiled)

    return decorate


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: register a function that launches kernels as ``crane_kernels::NAME``; it mutates no argument.

    ``fake`` gives empty results of the right shapes. The function launches by ``torch.library.wrap_triton``, so that
    Inductor sees the kernels; interpreted kernels cannot be traced, and make the operator opaque.
    """
    register: Any = torch.library.custom_op if _interpreting else torch.library.triton_op

    def decorate(function: Callable[..., Any]) -> Any:
        made = register(f"crane_kernels::{name}", function, mutates_args=())
        made.register_fake(fake)
        return made

    return decorate
