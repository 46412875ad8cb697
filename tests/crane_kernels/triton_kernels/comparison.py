"""How the Triton kernels' results are judged: against float64, and against plain PyTorch in the same precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Operators that launch nothing on a device: views, and memory that is only reserved.
FREE = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "narrow", "new_empty", "permute",
    "reshape", "result_type", "select", "slice", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
    "numpy_T", "_reshape_alias", "_unsafe_view", "lift_fresh", "resize_", "resolve_conj", "resolve_neg", "set_",
}  # fmt: skip


def value_and_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """``function(*tensors)``, then its gradients against fixed random weights, for the tensors that require one."""
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    value = function(*leaves)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, wanted, weight)]


def worst(found: Tensor, exact: Tensor) -> float:
    """The largest absolute error; infinite where ``found`` is not finite and ``exact`` is."""
    error = (found.double() - exact).abs().nan_to_num(nan=torch.inf)
    return float(error.max()) if error.numel() else 0.0


def root_mean_square(found: Tensor, exact: Tensor) -> float:
    """The root mean squared error: for gradients through a relu, which jump where rounding decides a sign."""
    error = (found.double() - exact).square().nan_to_num(nan=torch.inf)
    return float(error.mean().sqrt()) if error.numel() else 0.0


def assert_as_good_as_plain(
    found: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    names: Sequence[str],
    of_value: Callable[[Tensor, Tensor], float] = worst,
    of_gradients: Callable[[Tensor, Tensor], float] = worst,
) -> None:
    """Error at most twice plain PyTorch's of the same dtype, thrice for gradients, plus a rounding of the largest.

    Each sequence holds the value, whose error ``of_value`` measures, then gradients; ``exact`` is in float64.
    """
    for place, (name, ours, theirs, truth) in enumerate(zip(names, found, plain, exact, strict=True)):
        assert ours.shape == truth.shape, name
        assert ours.dtype == theirs.dtype, name
        factor, measure = (3, of_gradients) if place else (2, of_value)
        rounding = torch.finfo(ours.dtype).eps * (float(truth.abs().max()) if truth.numel() else 0.0)
        bound = factor * measure(theirs, truth) + rounding
        error = measure(ours, truth)
        assert error <= bound, f"{name}: error {error:.3g}, above {bound:.3g}"


def operators(function: Callable[[], object]) -> int:
    """Operators that eager PyTorch runs in a call and that would launch a kernel on a device, from the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    launching = (event for event in profiler.events() if launches(event.name))
    return sum(not any(launches(child.name) for child in event.cpu_children) for event in launching)


def launches(name: str) -> bool:
    """Whether the operator of that name launches a kernel, or calls one that does."""
    return name.startswith("aten::") and name.removeprefix("aten::") not in FREE
