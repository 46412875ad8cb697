"""Argument checks shared by the operations: each raises one sentence that names the argument, the finding, the need."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def matrix(name: str, x: object) -> Tensor:
    """Return ``x`` if it is a dense floating-point matrix.

    Raises:
        TypeError: ``x`` is no dense floating-point tensor.
        ValueError: ``x`` does not have two dimensions.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: found {type(x).__name__}, expected a torch tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: found a tensor of layout {x.layout}, expected a dense tensor")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name}: found dtype {x.dtype}, expected a floating-point dtype")
    if x.dim() != 2:
        raise ValueError(f"{name}: found shape {tuple(x.shape)}, expected two dimensions")
    return x


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
    """Return ``value`` if it is an int (no bool) of at least ``minimum``.

    Raises:
        TypeError: it is no int.
        ValueError: it is less than ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: found {value!r}, expected an int")
    if value < minimum:
        raise ValueError(f"{name}: found {value}, expected at least {minimum}")
    return value
