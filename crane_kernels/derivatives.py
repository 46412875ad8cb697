"""The derivatives of compiled operators: what traces them finds them in torch's registry, what runs them calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)


def differentiable(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> Callable[..., Any]:
    """Give the compiled operator of that name its backward, and return what calls it at less cost than the dispatcher.

    Registered, the two are found by what traces. An eager call need not find them through the dispatcher, which costs
    as much as a small product: it takes an autograd.Function made of them.

    Args:
        name: of an operator of ``torch.ops.crane_kernels``.
        backward: as of ``torch.library.register_autograd``.
        save: its ``setup_context``.

    Returns:
        What takes the operator's positional arguments, all of them, and gives its results.
    """
    operator = getattr(torch.ops.crane_kernels, name).default
    torch.library.register_autograd(operator, backward, setup_context=save)

    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():  # past the registered backward, as torch's own function does
            results = operator(*arguments)
        save(ctx, arguments, results)
        return results

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(name, (torch.autograd.Function,), members)

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and _is_plain(arguments):
            return function.apply(*arguments)  # type: ignore[attr-defined]
        return operator(*arguments)

    return call


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether the call is an eager one of plain tensors, which nothing follows that knows operators alone."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state():
        return False
    return all(type(x) in _PLAIN for x in arguments if isinstance(x, Tensor))
