"""Modules that project each modality, attend, and average: the authors' ``CrossModalAttention`` and its like.

Such a module is known by its parts: linear projections, one ``nn.MultiheadAttention``, no other parameters. What its
forward does with them is found by trying: a copy in float64 is run on random features, and what equals it to rounding,
with every gradient, is what it does. What a forward does to more rows than are tried cannot be known so.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crane_kernels.integrate import attention
from crane_kernels.modality_attention import modality_attention

Axis = Literal["modalities", "items"]
_TRIED_ROWS = (7, 4)
# Rows and the size of their values: a forward may go other ways for large ones, or take many rows by chunks.
_TRIED_FURTHER = ((4, 50.0), (1100, 1.0))
_MOST_MODALITIES = 4


@dataclass(frozen=True)
class Plan:
    """What a module's forward computes.

    Attributes:
        projections: name of each argument's projection, in the order of the arguments.
        attention: name of the ``nn.MultiheadAttention``.
        axis: along what it attends.
        factor: the result is this times the mean over the modalities.
        training: whether this holds in training mode too.
        settings: the module's own settings and its parts', by part and name: with others it may compute something else.
    """

    projections: tuple[str, ...]
    attention: str
    axis: Axis
    factor: float
    training: bool
    settings: tuple[tuple[str, str, Any], ...] = ()

    def __str__(self) -> str:
        how = "mean" if self.factor == 1 else "sum"
        return f"{len(self.projections)} projections, attention over {self.axis}, {how} over modalities"

    def __call__(self, module: nn.Module, features: tuple[Tensor, ...]) -> Tensor:
        """The module's output, (n, d), of the modalities' features, (n, d_m) each."""
        projected = [getattr(module, name)(x) for name, x in zip(self.projections, features, strict=True)]
        return self._attend(getattr(module, self.attention), torch.stack(projected, 1))

    def _attend(self, module: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
        weights = module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias
        mean = modality_attention(tokens, *weights, module.num_heads, self.axis)
        return mean if self.factor == 1 else self.factor * mean

    def refuses(self, module: nn.Module, features: tuple[Any, ...]) -> str | None:
        """Why the module's own forward must run for these arguments now; ``None`` when there is no reason."""
        child = getattr(module, self.attention)
        if not all(isinstance(x, Tensor) and x.layout == torch.strided and x.dim() == 2 for x in features):
            return "an argument is no dense matrix"
        if len({len(x) for x in features}) > 1:
            return "the modalities have different numbers of rows"
        if (module.training and not self.training) or any(part.training and _drops(part) for part in module.modules()):
            return "dropout is on"
        if _watched(child):
            return "the attention has hooks"
        if _settings(module) != self.settings:
            return "its settings are no longer those that were tried"
        return attention.refuses_module(child) or attention.refuses_state(child, features[0])


def holds_attention(module: nn.Module) -> bool:
    """Whether an ``nn.MultiheadAttention`` is a part of the module itself, and not of one of its parts."""
    return any(isinstance(child, nn.MultiheadAttention) for child in module.children())


def parts(module: nn.Module) -> tuple[list[str], str] | None:
    """Names of the projections and of the attention, if the module is made of those, else ``None``."""
    children = dict(module.named_children())
    attentions = [name for name, child in children.items() if isinstance(child, nn.MultiheadAttention)]
    projections = [name for name, child in children.items() if type(child) is nn.Linear]
    if len(attentions) != 1 or not 2 <= len(projections) <= _MOST_MODALITIES:
        return None
    known = {*attentions, *projections}
    others = (module._parameters, *(child.state_dict() for name, child in children.items() if name not in known))
    return None if any(others) else (projections, attentions[0])


def find_plan(module: nn.Module) -> Plan | str:
    """What the forward of ``module``, which holds an attention, computes; or why it cannot be replaced."""
    found = parts(module)
    if found is None:
        return "it is not made of two to four plain projections and one attention alone"
    if "forward" in vars(module):
        return "the instance has a forward of its own"
    projections, name = found
    reason = attention.refuses_module(getattr(module, name))
    if reason is not None:
        return f"{name}: {reason}"
    if any(True for _ in module.buffers()):
        return "it holds buffers"
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)), torch.inference_mode(False), torch.enable_grad():
        try:
            return _try_plans(_unwatched(copy.deepcopy(module)).double(), projections, name)
        except Exception as error:  # whatever a forward that is written for something else may raise
            return f"its forward cannot be tried with one matrix for each projection ({_first_line(error)})"


def methods(module: nn.Module, plan: Plan) -> dict[str, Callable[..., Any]]:
    """What :func:`override` needs for a module whose forward computes ``plan``."""
    cls = type(module)
    signature = inspect.signature(cls.forward)

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        features = bound.args[1:]
        known = len(features) == len(plan.projections) and not bound.kwargs
        if known and plan.refuses(self, features) is None:
            return plan(self, features)
        return cls.forward(self, *args, **kwargs)

    return {"forward": forward}


def _try_plans(module: nn.Module, projections: list[str], name: str) -> Plan | str:
    attributes, settings = _attributes(module.eval()), _settings(module)
    for plan in _plans(projections, name):
        if all(_equal(module.eval(), plan, rows) for rows in _TRIED_ROWS):
            if not _holds_further(module.eval(), plan):
                return "its forward computes something else for many rows or large features than for few and small"
            training = all(_equal(module.train(), plan, rows) for rows in _TRIED_ROWS)
            training = training and _holds_further(module, plan)
            now = _attributes(module.eval())
            if now.keys() != attributes.keys() or any(now[key] is not attributes[key] for key in now):
                return "its forward sets attributes of the module"
            return Plan(plan.projections, name, plan.axis, plan.factor, training, settings)
    output = module.eval()(*_features(module, tuple(projections), _TRIED_ROWS[0]))
    if not isinstance(output, Tensor):
        return f"its forward returns {type(output).__name__}, expected one tensor"
    return "its forward computes something else than attention over modalities or items and the mean over modalities"


def _plans(projections: list[str], name: str) -> Iterator[Plan]:
    axes: tuple[Axis, ...] = ("modalities", "items")
    for order in itertools.permutations(projections):
        for axis, factor in itertools.product(axes, (1.0, float(len(projections)))):
            yield Plan(order, name, axis, factor, True)


def _holds_further(module: nn.Module, plan: Plan) -> bool:
    """Whether ``plan`` gives the module's output for many rows, and for large features, too."""
    with torch.no_grad():
        for rows, size in _TRIED_FURTHER:
            features = tuple(size * x for x in _features(module, plan.projections, rows))
            output = module(*features)
            if not isinstance(output, Tensor) or not _close(plan(module, features), output):
                return False
    return True


def _equal(module: nn.Module, plan: Plan, rows: int) -> bool:
    """Whether ``plan`` gives the module's output and gradients on random features."""
    features = _features(module, plan.projections, rows)
    inputs = [*features, *(p for p in module.parameters() if p.requires_grad)]
    results = []
    for forward in (module, functools.partial(plan, module)):
        try:
            output = forward(*features) if forward is module else forward(features)
        except RuntimeError:
            return False  # widths that do not fit this order of the arguments
        if not isinstance(output, Tensor):
            return False
        weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
        results.append(
            (output, *torch.autograd.grad(output, inputs, weight, allow_unused=True, materialize_grads=True))
        )
    return all(_close(ours, theirs) for theirs, ours in zip(*results, strict=True))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def _features(module: nn.Module, projections: tuple[str, ...], rows: int) -> tuple[Tensor, ...]:
    like = next(module.parameters())
    widths = [getattr(module, name).in_features for name in projections]
    return tuple(torch.randn(rows, width, dtype=like.dtype, device=like.device, requires_grad=True) for width in widths)


def _attributes(module: nn.Module) -> dict[tuple[str, str], Any]:
    """What the module and its parts hold, by part and name."""
    return {(path, name): value for path, part in module.named_modules() for name, value in vars(part).items()}


def _settings(module: nn.Module) -> tuple[tuple[str, str, Any], ...]:
    """Part, name and value of all plain attributes but those that :meth:`Plan.refuses` looks at by themselves."""
    return tuple(
        (path, name, value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | str) and name != "training" and not _is_dropout_rate(part, name)
    )


def _is_dropout_rate(module: nn.Module, name: str) -> bool:
    return name == ("dropout" if isinstance(module, nn.MultiheadAttention) else "p") and _may_drop(module)


def _may_drop(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention | nn.modules.dropout._DropoutNd)


def _drops(module: nn.Module) -> bool:
    dropout = module.dropout if isinstance(module, nn.MultiheadAttention) else getattr(module, "p", 0.0)
    return _may_drop(module) and bool(dropout)


def _watched(module: nn.Module) -> bool:
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    everywhere: bool = torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return everywhere or any(own)


def _unwatched(module: nn.Module) -> nn.Module:
    """The module without hooks: whoever put them there expects to see no trials."""
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return module


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
