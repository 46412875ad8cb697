"""Argument checks shared by the operations: each raises one sentence that names the argument, the finding, the need."""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from contextlib import suppress
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INT64_MAX = 2**63 - 1
LARGEST = 2**48  # sizes from here on fit no memory
_INT32_MAX = 2**31 - 1
_COUNTS = {1: "one dimension", 2: "two dimensions", 3: "three dimensions"}


def short(value: object) -> str:
    """What to call a value in a message: it may be a tensor, or have more digits than Python prints."""
    return (
        f"an int of {value.bit_length()} bits"
        if isinstance(value, int) and abs(value) > LARGEST**2
        else reprlib.repr(value)
    )


def matrix(name: str, x: object) -> Tensor:
    """Return ``x`` if it is a dense floating-point matrix.

    Raises:
        TypeError: ``x`` is no dense floating-point tensor.
        ValueError: ``x`` does not have two dimensions.
    """
    return tensor(name, x, 2)


def tensor(name: str, x: object, dimensions: int) -> Tensor:
    """Return ``x`` if it is a dense floating-point tensor of that many dimensions.

    Raises:
        TypeError: ``x`` is no dense floating-point tensor.
        ValueError: ``x`` has another number of dimensions.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: found {type(x).__name__}, expected a torch tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: found a tensor of layout {x.layout}, expected a dense tensor")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name}: found dtype {x.dtype}, expected a floating-point dtype")
    if x.dim() != dimensions:
        raise ValueError(f"{name}: found shape {tuple(x.shape)}, expected {_COUNTS[dimensions]}")
    return x


def matrices(name: str, x: object) -> Tensor:
    """Return ``x`` if it is a dense floating-point tensor of one or more matrices.

    Raises:
        TypeError: ``x`` is no dense floating-point tensor.
        ValueError: ``x`` has less than two dimensions.
    """
    return tensor(name, x, max(x.dim(), 2) if isinstance(x, Tensor) else 2)


def beside(name: str, x: object, shape: tuple[int, ...], like: Tensor, what: str) -> Tensor:
    """Return ``x`` if it is a dense tensor of ``shape`` with dtype and device of ``like``, which is called ``what``.

    Raises:
        TypeError: ``x`` is no dense tensor of that dtype.
        ValueError: it has another shape or lives on another device.
    """
    found = tensor(name, x, len(shape))
    if tuple(found.shape) != shape:
        raise ValueError(f"{name}: found shape {tuple(found.shape)}, expected {shape} to go with {what}")
    if found.dtype != like.dtype:
        raise TypeError(f"{name}: found dtype {found.dtype}, expected {like.dtype}, the dtype of {what}")
    same_device(name, found, like.device, what)
    return found


def _integers(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: found {type(x).__name__}, expected a torch tensor")
    if x.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: found dtype {x.dtype}, expected int64 or int32")
    return x


def indices(name: str, x: object, size: int, what: str) -> Tensor:
    """Return ``x`` if it is a vector of int64 or int32 indices of ``size`` things called ``what``.

    The range is looked at on the CPU only: elsewhere that would stop the device's queue, and the device checks it. Nor
    while torch.compile traces the call, which would break its graph: the compiled kernels look again.

    Raises:
        TypeError: ``x`` is no integer tensor.
        ValueError: it has not one dimension, holds an index out of range, or is mapped over by torch.func.vmap.
    """
    x = _integers(name, x)
    if x.dim() != 1:
        raise ValueError(f"{name}: found shape {tuple(x.shape)}, expected one dimension")
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
        if _batched(x):
            raise ValueError(
                f"{name}: found a batch of torch.func.vmap, expected indices that all of it shares (flattened, those of"
                " a batch are one call)"
            )
        low, high = (int(bound) for bound in x.aminmax())
        if low < 0 or high >= size:
            raise ValueError(f"{name}: found index {low if low < 0 else high}, expected 0 to {size - 1}, {what}")
    return x


def _batched(x: Tensor) -> bool:
    """Whether torch.func.vmap has put several tensors in the place of ``x``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def index_dtype(n: int) -> torch.dtype:
    """The dtype of indices of ``n`` things: int32 where it fits."""
    return torch.int32 if n <= _INT32_MAX else torch.int64


def labels(name: str, x: object, n_rows: int, device: torch.device, what: str) -> Tensor:
    """Return ``x`` if it is a vector of ``n_rows`` int64 or int32 labels on ``device``, one for each row of ``what``.

    Raises:
        TypeError: ``x`` is no integer tensor.
        ValueError: it has another shape or lives on another device.
    """
    x = _integers(name, x)
    if tuple(x.shape) != (n_rows,):
        raise ValueError(f"{name}: found shape {tuple(x.shape)}, expected {(n_rows,)}, one for each row of {what}")
    same_device(name, x, device, what)
    return x


def finite_rows(name: str, x: Tensor) -> None:
    """Check that ``x`` (n, d) holds neither NaN nor infinities.

    Tensors of the meta device hold nothing. While torch.compile traces the call, the check becomes part of its graph: a
    RuntimeError when that runs.

    Raises:
        ValueError: it does; the first such row is named.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(torch.isfinite(x).all(), f"{name}: found NaN or infinity, expected finite numbers")
        return
    # NaN and infinities show in the bounds: no mask of the size of x.
    if x.device.type != "meta" and x.numel() and not all(bool(bound.isfinite()) for bound in x.detach().aminmax()):
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise ValueError(f"{name}: found NaN or infinity in row {row}, expected finite numbers")


def positive(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite number (numpy's are, a bool is none) above zero.

    Raises:
        TypeError: it is no real number.
        ValueError: it is zero, negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Real):
        raise TypeError(f"{name}: found {short(value)}, expected a number")
    number = math.inf
    with suppress(OverflowError):  # of an int or a fraction that is too large for a float
        number = float(value)
    if not (0 < number <= sys.float_info.max):
        raise ValueError(f"{name}: found {short(value)}, expected a finite number above zero")
    return number


def instance(name: str, value: object, kind: type[_T]) -> _T:
    """Return ``value`` if it is a ``kind``.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        package = "" if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]} "
        raise TypeError(f"{name}: found {type(value).__name__}, expected a {package}{kind.__name__}")
    return value


def rows(name: str, x: Tensor, n_rows: int, why: str) -> None:
    """Check that ``x`` has ``n_rows`` rows; ``why`` says what asks for that many.

    Raises:
        ValueError: it does not.
    """
    if x.shape[0] != n_rows:
        raise ValueError(f"{name}: found {x.shape[0]} rows, expected {n_rows}, {why}")


def same_device(name: str, x: Tensor, device: torch.device, what: str) -> None:
    """Check that ``x`` lives on ``device``, where ``what`` lives.

    Raises:
        ValueError: it does not.
    """
    if x.device != device:
        raise ValueError(f"{name}: found on device {x.device}, expected {device}, where {what} is")


def integer(name: str, value: object, minimum: int) -> int:
    """Return ``value`` as an int if it is an integer (numpy's are, a bool is none) of at least ``minimum``, in 64 bits.

    Raises:
        TypeError: it is no integer.
        ValueError: it is less than ``minimum``, or too large.
    """
    found = value
    if not isinstance(value, int):
        with suppress(TypeError):
            found = operator.index(value)  # type: ignore[arg-type]
    if isinstance(found, bool) or not isinstance(found, int):
        raise TypeError(f"{name}: found {short(value)}, expected an int")
    if found < minimum:
        raise ValueError(f"{name}: found {short(found)}, expected at least {minimum}")
    if found > INT64_MAX:
        raise ValueError(f"{name}: found {short(found)}, expected at most 2^63 - 1")
    return found
