"""Computing again in backward instead of keeping, where PyTorch can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crane_kernels import extension


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function(*arguments)``, of which backward keeps the arguments alone and runs it again.

    ``function`` draws no random numbers. Under torch.func and forward-mode differentiation, which take no hooks of
    saved tensors, everything is kept.
    """
    if extension.refuses_derivatives() is not None:
        return function(*arguments)
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
