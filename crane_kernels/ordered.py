"""Sums over repeated indices that give the same bits every time, on CUDA as well, where ``index_add`` does not."""

from __future__ import annotations

from torch import Tensor


def sum_at(place: Tensor, values: Tensor, n: int) -> Tensor:
    """Sums of what ``values`` (e, ...) has for each place: (n, ...), for integers ``place`` (e,) in [0, n).

    The terms are added in the order given on the CPU, and in that of a sort on CUDA.
    """
    zeros = values.new_zeros(n, *values.shape[1:])
    if values.device.type == "cuda":
        return zeros.index_put((place.long(),), values, accumulate=True)
    return zeros.index_add(0, place, values)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (r,) of ``x``, repetitions allowed, whose gradient is summed as by :func:`sum_at`."""
    return x[index.long()] if x.device.type == "cuda" else x.index_select(0, index)
