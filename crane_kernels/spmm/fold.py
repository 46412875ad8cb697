"""Several matrices as one of wider rows: the graph is then read once for all of them."""

from __future__ import annotations

from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """(..., n, d) as (n, ... * d)."""
    return x if x.dim() == 2 else x.movedim(-2, 0).flatten(1)


def unfold(y: Tensor, x: Tensor) -> Tensor:
    """What was computed of ``fold(x)``: (r, ... * d) as (..., r, d)."""
    return y if x.dim() == 2 else y.view(y.shape[0], *x.shape[:-2], x.shape[-1]).movedim(0, -2)
