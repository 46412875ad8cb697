"""The one place that decides which implementation serves a call.

Every operation registers its implementations here, fastest first and ``reference`` last. A call is served by the
first one that can run it; a request (argument, context manager, environment variable) narrows the choice to one, and
a request that cannot be honoured is an error that says what is missing.

Precedence: the ``implementation=`` argument, then :func:`use_implementation`, then ``CRANE_IMPLEMENTATION``, then the
automatic choice. ``CRANE_IMPLEMENTATION`` holds one name for all operations that have it (``reference``) or a list
for single operations (``spmm=cpp,info_nce=reference``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

IMPLEMENTATION_NAMES = ("reference", "cpp", "cuda", "triton")
ENVIRONMENT_VARIABLE = "CRANE_IMPLEMENTATION"


def _always(*_args: Any, **_kwargs: Any) -> str | None:
    return None


class UnavailableError(RuntimeError):
    """The implementation that was asked for cannot run here, or cannot serve the call; the message says why."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    ``missing()`` says what the environment lacks (``None``: nothing); ``refuses(*args, **kwargs)`` gets the call's own
    arguments and says why it cannot serve them (``None``: it can). ``unasked()`` says why it serves only the calls that
    request it (``None``: it serves all).
    """

    name: str
    function: Callable[..., Any]
    missing: Callable[[], str | None] = _always
    refuses: Callable[..., str | None] = _always
    unasked: Callable[[], str | None] = _always


@dataclass(frozen=True)
class Choice:
    """What serves a call, and why each faster implementation does not: ``rejected`` maps its name to the reason."""

    operation: str
    implementation: Implementation
    requested: bool
    rejected: dict[str, str]


_registry: dict[str, tuple[Implementation, ...]] = {}
_overrides: dict[str, str] = {}


def register(operation: str, *implementations: Implementation) -> None:
    """Register ``operation`` with its implementations, fastest first; the last must be named ``reference``."""
    if not implementations or implementations[-1].name != "reference":
        raise ValueError(f"operation {operation!r} must list a reference implementation last")
    _registry[operation] = implementations


def operations() -> tuple[str, ...]:
    """Names of all registered operations, sorted."""
    return tuple(sorted(_registry))


def implementations(operation: str) -> tuple[str, ...]:
    """Names of the implementations of ``operation``, fastest first.

    Raises:
        ValueError: no such operation.
    """
    return tuple(candidate.name for candidate in _registered(operation, "operation"))


def call(operation: str, requested: str | None, *args: Any, **kwargs: Any) -> Any:
    """Run ``operation`` with the implementation that :func:`choose` picks."""
    return _pick(operation, requested, None, args, kwargs).function(*args, **kwargs)


def choose(operation: str, requested: str | None, *args: Any, **kwargs: Any) -> Choice:
    """Say which implementation would serve a call with these arguments, and why the faster ones would not.

    Raises:
        ValueError: no such operation, or the requested implementation does not exist for it.
        UnavailableError: the requested implementation cannot run here or cannot serve these arguments.
    """
    _registered(operation, "operation")
    rejected: dict[str, str] = {}
    picked = _pick(operation, requested, rejected, args, kwargs)
    return Choice(operation, picked, _request(operation, requested) is not None, rejected)


def environment_choice(operation: str) -> Choice:
    """Like :func:`choose`, from the environment alone: what serves a call whose arguments nothing refuses."""
    wanted = _request(operation, None)
    rejected: dict[str, str] = {}
    for candidate in _registry[operation]:
        if wanted is not None and candidate.name != wanted:
            rejected[candidate.name] = f"{wanted} was requested"
            continue
        reason = candidate.missing() or (None if wanted is not None else candidate.unasked())
        if reason is None:
            return Choice(operation, candidate, wanted is not None, rejected)
        rejected[candidate.name] = reason
    raise UnavailableError(f"{operation}: implementation {wanted!r} was requested but {rejected[str(wanted)]}")


@contextmanager
def use_implementation(everything: str | None = None, /, **by_operation: str) -> Iterator[None]:
    """Within the block, serve operations by the named implementations (process-wide, not per thread).

    ``use_implementation("reference")`` applies to every operation that has it;
    ``use_implementation(spmm="cpp")`` to the named ones.

    Raises:
        ValueError: an operation or an implementation of that name does not exist.
    """
    new = _expand(everything, by_operation, source="use_implementation")
    saved = dict(_overrides)
    _overrides.update(new)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(saved)


def load_environment() -> None:
    """Apply ``CRANE_IMPLEMENTATION``; called once, after every operation has been registered."""
    text = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    if not text:
        return
    everything: str | None = None
    by_operation: dict[str, str] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        operation, equals, name = part.partition("=")
        if equals:
            by_operation[operation.strip()] = name.strip()
        else:
            everything = part
    _overrides.update(_expand(everything, by_operation, source=ENVIRONMENT_VARIABLE))


def _expand(everything: str | None, by_operation: dict[str, str], source: str) -> dict[str, str]:
    new: dict[str, str] = {}
    if everything is not None:
        if everything not in IMPLEMENTATION_NAMES:
            raise ValueError(f"{source}: found {everything!r}, expected one of {', '.join(IMPLEMENTATION_NAMES)}")
        new = {op: everything for op, known in _registry.items() if any(i.name == everything for i in known)}
    for operation, name in by_operation.items():
        _registered(operation, source)
        _find(operation, name, source)
        new[operation] = name
    return new


def _registered(operation: str, source: str) -> tuple[Implementation, ...]:
    """The implementations of an operation that somebody named."""
    if operation not in _registry:
        raise ValueError(f"{source}: found operation {operation!r}, expected one of {', '.join(operations())}")
    return _registry[operation]


def _find(operation: str, name: str, source: str) -> Implementation:
    for candidate in _registry[operation]:
        if candidate.name == name:
            return candidate
    known = ", ".join(i.name for i in _registry[operation])
    raise ValueError(f"{source}: {operation} has no implementation {name!r}, expected one of {known}")


def _request(operation: str, requested: str | None) -> str | None:
    return requested if requested is not None else _overrides.get(operation)


def _pick(
    operation: str, requested: str | None, rejected: dict[str, str] | None, args: Any, kwargs: Any
) -> Implementation:
    wanted = _request(operation, requested)
    if wanted is not None:
        candidate = _find(operation, wanted, "implementation")
        reason = candidate.missing() or candidate.refuses(*args, **kwargs)
        if reason is not None:
            raise UnavailableError(f"{operation}: implementation {wanted!r} was requested but {reason}")
        return candidate
    for candidate in _registry[operation]:
        reason = candidate.missing() or candidate.unasked() or candidate.refuses(*args, **kwargs)
        if reason is None:
            return candidate
        if rejected is not None:
            rejected[candidate.name] = reason
    raise RuntimeError(f"{operation}: the reference implementation refused the call: {reason}")
