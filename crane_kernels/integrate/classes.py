"""Other methods for one module, by a class of its own.

Setting an attribute of the module would shadow the class as well, but a function there cannot be pickled, and a copied
module would call the original's. A class derived from the module's own leaves the instance as it is: parameters, state
dict, hooks, ``isinstance`` and ``super()``. Copies keep the class; pickles do not, since nobody could import it: they
hold the module as it was built, and load where this package is not installed.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Whether ``module`` has methods from :func:`override`."""
    return _AS_BUILT in vars(type(module))


def restore(module: nn.Module) -> None:
    """Give ``module`` the class back that it had before :func:`override`."""
    if is_overridden(module):
        module.__class__ = getattr(type(module), _AS_BUILT)


@contextmanager
def as_built(module: nn.Module) -> Iterator[nn.Module]:
    """Within the block, ``module`` has its own class again."""
    with _changing:
        cls = type(module)
        restore(module)
        try:
            yield module
        finally:
            module.__class__ = cls


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    with as_built(self):
        return self.__reduce_ex__(min(protocol, 1))  # from 2 on, pickle insists on the class that the module has now


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    with as_built(self):
        copied = copy.deepcopy(self, memo)
    copied.__class__ = type(self)
    return copied
