"""Two lines for a model that exists: its known parts served by the kernels, in place and reversibly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import ref

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from crane_kernels.checks import instance
from crane_kernels.integrate import attention, fusion, products
from crane_kernels.integrate.classes import is_overridden, override
from crane_kernels.integrate.report import Left, Replaced, Report

_PARAMETRIZED = "it is parametrized: accelerate it before its parametrizations are registered"


def accelerate(model: nn.Module) -> Report:
    """Serve the parts of ``model`` that the kernels know by them, in place.

    - ``torch.sparse.mm``, ``torch.mm``, ``torch.matmul`` and ``@`` of a sparse and a dense matrix, within the methods
      of the model's own classes, as :func:`crane_kernels.sparse_mm` does. Other models' calls are not touched.
    - Modules of linear projections, one ``nn.MultiheadAttention`` and the mean over modalities: attention over the
      modalities of an item, or over all items, which then holds no items x items matrix. A copy of the module is tried
      on random features first.
    - Other ``nn.MultiheadAttention``, where a call attends from few tokens to themselves.

    Nothing is added to the model and no parameter changes: state dict, optimisers, hooks and copies stay as they are,
    results and gradients to rounding error. A pickled model is the plain one. Parts that are accelerated already stay
    so. What a part is given decides at each call whether the kernels can serve it, else the part's own code runs:
    attention with dropout in training, autocast, masks or settings changed since.

    Returns:
        What was replaced, what was left and why; its ``undo`` takes the changes back.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
    """
    instance("model", model, nn.Module)
    collected = _Collected()
    try:
        _replace_attention(model, collected)
        _replace_products(model, collected)
    except BaseException:
        collected.report(model).undo()
        raise
    return collected.report(model)


@contextmanager
def accelerated(model: nn.Module) -> Iterator[Report]:
    """:func:`accelerate` within the block; the model is as before after it."""
    report = accelerate(model)
    try:
        yield report
    finally:
        report.undo()


class _Collected:
    """A report in the making."""

    def __init__(self) -> None:
        self.replaced: list[Replaced] = []
        self.left: list[Left] = []
        self.modules: list[nn.Module] = []

    def report(self, model: nn.Module) -> Report:
        return Report(type(model).__name__, tuple(self.replaced), tuple(self.left), tuple(map(ref, self.modules)))


def _replace_attention(model: nn.Module, collected: _Collected) -> None:
    """Replace the modules around an attention where that goes, else the attention alone."""
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        name = type(module).__name__
        if is_overridden(module):
            collected.left.append(Left(path, name, "it is accelerated already"))
            inside |= set(module.children()) if fusion.parts(module) else set()
        elif fusion.holds_attention(module) and not products.is_torchs(type(module)):
            plan = fusion.find_plan(module)
            if isinstance(plan, str):
                collected.left.append(Left(path, name, plan))
                continue
            override(module, fusion.methods(module, plan))
            collected.modules.append(module)
            collected.replaced.append(Replaced(path, f"{name} ({plan})", "modality_attention"))
            inside |= set(module.children())
        elif isinstance(module, nn.MultiheadAttention) and module not in inside:
            _replace_multihead(path, module, collected)


def _replace_multihead(path: str, module: nn.MultiheadAttention, collected: _Collected) -> None:
    reason = attention.refuses_module(module)
    if reason is not None:
        collected.left.append(Left(path, "MultiheadAttention", reason))
        return
    override(module, {"forward": attention.forward})
    collected.modules.append(module)
    by = f"a few large products, for up to {attention.MOST_TOKENS} tokens a row"
    collected.replaced.append(Replaced(path, "MultiheadAttention", by))


def _replace_products(model: nn.Module, collected: _Collected) -> None:
    """Serve the sparse products of the outermost modules that users wrote, and of those inside that name some."""
    parametrized = [path for path, module in model.named_modules() if _is_parametrized(module)]
    collected.left += [Left(path, "sparse products", _PARAMETRIZED) for path in parametrized]
    written = {
        path: module
        for path, module in model.named_modules()
        if not products.is_torchs(type(module)) and not is_overridden(module)
    }
    found = {path: products.found_in(module) for path, module in written.items()}
    if not any(found.values()):
        if not parametrized and not any(is_overridden(module) for module in model.modules()):
            why = "no method names torch.sparse.mm and no attribute is sparse"
            collected.left.append(Left("", "sparse products", why))
        return
    for path, module in written.items():
        if not found[path] and any(_inside(path, other) for other in written):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            collected.left.append(Left(path, "sparse products", "it is compiled by TorchScript"))
            continue
        own = [name for name in products.methods(type(module)) if name in vars(module)]
        for name in own:
            collected.left.append(Left(path, f"sparse products in {name}()", "the instance has a method of its own"))
        override(module, products.methods(type(module)))
        collected.modules.append(module)
        where = ", ".join(found[path]) or "what its methods call"
        collected.replaced.append(Replaced(path, f"sparse products of {type(module).__name__} ({where})", "sparse_mm"))


def _is_parametrized(module: nn.Module) -> bool:
    """Whether torch's parametrizations hide a class with sparse products."""
    return is_parametrized(module) and not is_overridden(module) and bool(products.found_in(module))


def _inside(path: str, other: str) -> bool:
    return path != other and (other == "" or path.startswith(other + "."))
