"""Other methods for one module, by a class of its own.

Setting an attribute of the module would shadow the class as well, but a function there cannot be pickled, and a copied
module would call the original's. A class derived from the module's own leaves the instance as it is: parameters, state
dict, hooks, ``isinstance`` and ``super()``. Copies keep the class; pickles do not, since nobody could import it: they
hold the module as it was built, and load where this package is not installed.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

_AS_BUILT = "_crane_class_as_built"
_changing = threading.RLock()  # of classes: copies in several threads would take each other's for the module's


def override(module: nn.Module, methods: dict[str, Any]) -> None:
    """Give ``module`` these methods, before those of its class."""
    cls = type(module)
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce_ex,
        "__deepcopy__": _deepcopy,
        _AS_BUILT: cls,
        **methods,
    }
    module.__class__ = _derived(cls, namespace)


def _derived(cls: type[nn.Module], namespace: dict[str, Any]) -> Any:
    """A class derived from ``cls``, unseen by its ``__init_subclass__``: registries hold what users wrote."""
    metaclass: Any = type(cls)
    try:
        derived = metaclass(cls.__name__, (nn.Module,), namespace)
        derived.__bases__ = (cls,)
    except TypeError:  # a first base such as ABC or Generic, which has slots, makes another layout
        return metaclass(cls.__name__, (cls,), namespace)
    return derived


def is_overridden(module: nn.Module) -> bool:
    """Whether ``module`` has methods from :func:`override`, if only by a class that was derived later."""
    return any(_AS_BUILT in vars(cls) for cls in type(module).__mro__)


def restore(module: nn.Module) -> None:
    """Give ``module`` the class back that it had before :func:`override`.

    A class that others derived since, as torch's parametrizations do for one module, stays, with the class as built in
    the place of ours.
    """
    _strip(module)


def _strip(module: nn.Module) -> Callable[[], None]:
    """:func:`restore`, and what takes it back."""
    for derived in type(module).__mro__:
        if _AS_BUILT in vars(derived):
            module.__class__ = getattr(derived, _AS_BUILT)
            return partial(setattr, module, "__class__", derived)
        bases = derived.__bases__
        if any(_AS_BUILT in vars(base) for base in bases):
            derived.__bases__ = tuple(vars(base).get(_AS_BUILT, base) for base in bases)
            return partial(setattr, derived, "__bases__", bases)
    return lambda: None


@contextmanager
def as_built(module: nn.Module) -> Iterator[nn.Module]:
    """Within the block, ``module`` has its own class again."""
    with _changing:
        take_back = _strip(module)
        try:
            yield module
        finally:
            take_back()


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    with as_built(self):
        return self.__reduce_ex__(min(protocol, 1))  # from 2 on, pickle insists on the class that the module has now


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if _AS_BUILT not in vars(type(self)):  # a parametrized module: it has no reduced form, and is copied as torch does
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied
    with as_built(self):
        copied = copy.deepcopy(self, memo)
    copied.__class__ = type(self)
    return copied
