"""What :func:`crane_kernels.accelerate` did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType

from torch import nn

from crane_kernels.integrate.classes import restore


@dataclass(frozen=True)
class Replaced:
    """A part that the kernels now serve: the module's path (empty for the model itself), the part, and by what."""

    path: str
    part: str
    by: str


@dataclass(frozen=True)
class Left:
    """A part that stays as it was: the module's path (empty for the model itself), the part, and why."""

    path: str
    part: str
    why: str


@dataclass(frozen=True)
class Report:
    """What was replaced in a model, what was left and why; ``print`` it. Copies and pickles have nothing to undo.

    Attributes:
        model: name of the model's class.
        replaced: the parts that the kernels serve.
        left: the parts that stay as they were.
    """

    model: str
    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    _modules: tuple[ReferenceType[nn.Module], ...] = field(default=(), repr=False, compare=False)

    def undo(self) -> None:
        """Make the model what it was before; what an earlier call had replaced stays replaced."""
        for reference in self._modules:
            module = reference()
            if module is not None:
                restore(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return Report, (self.model, self.replaced, self.left)

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.replaced)} replaced, {len(self.left)} left"]
        lines += [f"  replaced  {_place(r.path)}{r.part} -> {r.by}" for r in self.replaced]
        lines += [f"  left      {_place(e.path)}{e.part}: {e.why}" for e in self.left]
        return "\n".join(lines)


def _place(path: str) -> str:
    return f"{path}: " if path else ""
