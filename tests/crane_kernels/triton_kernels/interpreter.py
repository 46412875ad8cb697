"""Triton's interpreter as the tests use it: its bfloat16 put right, its loads, stores and launches counted.

A test module that imports from here is skipped where Triton is not installed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from crane_kernels import triton_support

try:
    import triton
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import GridExecutor, InterpretedFunction, InterpreterBuilder, TensorHandle
except ImportError:
    pytest.skip(str(triton_support.absent()), allow_module_level=True)

__all__ = ["Traffic", "correct", "counted", "hasten", "tl", "triton"]


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to nearest, ties to even, as bit patterns (the interpreter of Triton 3.8 truncates)."""
    rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


def widen(values: np.ndarray) -> np.ndarray:
    """The float32 that bit patterns of bfloat16 stand for."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def correct(patch: pytest.MonkeyPatch) -> None:
    """Make the interpreter cast to bfloat16 and multiply matrices of it as devices do."""
    cast, dot, convert = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, interpreter._convert_float

    def cast_impl(self: Any, source: TensorHandle, target: Any) -> TensorHandle:
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)
        if tl.bfloat16 in kinds and kinds[0] != kinds[1] and kinds != (tl.bfloat16, tl.float32):
            raise NotImplementedError(f"the interpreter casts {kinds[0]} to {kinds[1]} by its bits")
        return cast(self, source, target)

    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (TensorHandle(widen(operand.data), tl.float32) for operand in (a, b))
        return dot(self, a, b, *rest)

    def binary_op(self: Any, left: TensorHandle, right: TensorHandle, op: Any) -> TensorHandle:
        if left.dtype.scalar == tl.bfloat16:
            raise NotImplementedError("the interpreter computes with the bits of bfloat16: cast to float32 first")
        return plain_binary(self, left, right, op)

    def convert_float(source: np.ndarray, kind: Any, target: Any, rounding: Any) -> np.ndarray:
        # The interpreter of Triton 3.8 is wrong about bfloat16's denormals, too.
        own = {(tl.float32, tl.bfloat16): round_to_bfloat16, (tl.bfloat16, tl.float32): widen}.get((kind, target))
        return convert(source, kind, target, rounding) if own is None else own(source)

    plain_binary = InterpreterBuilder.binary_op
    patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    patch.setattr(InterpreterBuilder, "binary_op", binary_op)
    patch.setattr(interpreter, "_convert_float", convert_float)
    patch.setattr(triton_support, "INTERPRETED_DTYPES", set(triton_support.DTYPES))


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Check no integer for overflow, and redirect Triton's language once a launch, not at each call of a function."""
    launch, redirected = GridExecutor.__call__, set()

    def run(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        redirected.clear()
        launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self.fn.__globals__) not in redirected:
            redirected.add(id(self.fn.__globals__))
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    unchecked = interpreter.InterpreterOptions(sanitize_overflow=False)
    patch.setattr(interpreter.interpreter_builder, "options", unchecked)
    patch.setattr(GridExecutor, "__call__", run)
    patch.setattr(InterpretedFunction, "__call__", call)


@dataclass
class Traffic:
    """Bytes that kernels loaded from and stored to global memory, masked lanes excluded, and launches by kernel."""

    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)

    @property
    def bytes(self) -> int:
        """All bytes moved."""
        return self.loaded.total() + self.stored.total()


def lanes(pointers: TensorHandle, mask: TensorHandle | None) -> int:
    """Bytes behind the pointers whose lane is not masked."""
    used = pointers.data.size if mask is None else np.count_nonzero(np.broadcast_to(mask.data, pointers.data.shape))
    return int(used) * pointers.get_element_ty().primitive_bitwidth // 8


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what the kernels move within the block."""
    traffic, running = Traffic(), [""]
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    launch = GridExecutor.__call__

    def create_masked_load(self: Any, pointers: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
        traffic.loaded[running[0]] += lanes(pointers, mask)
        return load(self, pointers, mask, *rest)

    def create_masked_store(
        self: Any, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
    ) -> Any:
        traffic.stored[running[0]] += lanes(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def run(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        running[0] = self.fn.__name__
        traffic.launches[running[0]] += 1
        launch(self, *args, **kwargs)

    def refuse(self: Any, *_: Any) -> None:
        raise NotImplementedError("atomics and descriptors are not counted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", create_masked_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", create_masked_store)
        for name in ("create_atomic_rmw", "create_atomic_cas", "create_descriptor_load", "create_descriptor_store"):
            patch.setattr(InterpreterBuilder, name, refuse)
        patch.setattr(GridExecutor, "__call__", run)
        yield traffic
