"""Sparse products inside a model's methods.

Models name ``torch.sparse.mm`` in their own modules, in helpers, or write ``A @ x``. A function mode sees all of them,
in the thread and for the time that a method of the model runs; a patched name would be seen by other models too, and
would miss the operator.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crane_kernels.sparse_mm import fast_operands
from crane_kernels.sparse_mm.cache import LAYOUTS
from crane_kernels.spmm import spmm

_PRODUCTS = {torch.sparse.mm, torch.mm, torch.spmm, torch.matmul, Tensor.mm, Tensor.matmul}
_thread = threading.local()


class SparseProducts(TorchFunctionMode):
    """Within the block, this thread's products of a sparse and a dense matrix are served by ``spmm``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and len(args) == 2 and not kwargs and _is_sparse(args[0]):
            operands = fast_operands(*args)
            if operands is not None:
                return spmm(*operands)
        return func(*args, **(kwargs or {}))


def methods(cls: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """What :func:`override` needs for a module of class ``cls``: what users wrote, with sparse products."""
    return {name: _scoped(cls, name, function) for name, function in _written(cls)}


def found_in(module: nn.Module) -> list[str]:
    """Where ``module`` itself has to do with sparse matrices: names of methods and of attributes."""
    methods = [f"{name}()" for name, function in _written(type(module)) if _mentions(function)]
    held = {**vars(module), **module._buffers, **module._parameters}
    return methods + [name for name, value in held.items() if any(map(_is_sparse, _members(value)))]


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return value
    return value.values() if isinstance(value, dict) else (value,)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout in LAYOUTS


def _scoped(cls: type[nn.Module], name: str, function: FunctionType) -> Callable[..., Any]:
    @functools.wraps(function)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        original = getattr(cls, name)
        if getattr(_thread, "active", False) or torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        _thread.active = True
        try:
            with SparseProducts():
                return original(self, *args, **kwargs)
        finally:
            _thread.active = False

    return method


def _written(cls: type[nn.Module]) -> Iterator[tuple[str, FunctionType]]:
    """Plain methods of ``cls`` from no class of torch; not generators, whose bodies run after the call."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner is object or is_torchs(owner):
            continue
        for name, value in vars(owner).items():
            if name in seen or name.startswith("__"):
                continue
            seen.add(name)
            if isinstance(value, FunctionType) and not (
                inspect.isgeneratorfunction(value) or inspect.iscoroutinefunction(value)
            ):
                yield name, value


def is_torchs(cls: type) -> bool:
    """Whether torch defines the class."""
    return cls.__module__ == "torch" or cls.__module__.startswith("torch.")


def _mentions(function: FunctionType) -> bool:
    """Whether the function, or one of its module that it calls by name, names sparse products of torch."""
    pending, seen = [function], {function}
    while pending:
        current = pending.pop()
        names = set(_names(current.__code__))
        wrapped = inspect.unwrap(current)
        if {"sparse", "mm"} <= names or "spmm" in names:
            return True
        called = [wrapped, *(current.__globals__.get(name) for name in names)]
        new = {f for f in called if isinstance(f, FunctionType) and not (f.__module__ or "").startswith("torch")} - seen
        pending += new
        seen |= new
    return False


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
