"""The derivatives of compiled operators: what traces them finds them in torch's registry, what runs them calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def differentiable(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> Callable[..., Any]:
    """Give the compiled operator of that name its backward, and return what calls it with less ado than torch's.

    Registered, the two are found by whatever traces: torch.compile, torch.export, make_fx. An eager call need not find
    them through the dispatcher, which costs as much as a small product: it takes an autograd.Function made of them.

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
        results = operator(*arguments)
        save(ctx, arguments, results)
        return results

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(name, (torch.autograd.Function,), members)

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and not _transformed():
            return function.apply(*arguments)  # type: ignore[attr-defined]
        return operator(*arguments)

    return call


def _transformed() -> bool:
    """Whether something follows the call that knows operators alone."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
