"""Reads JSON of others: a field comes out with the type and range that it should have, or as one clear sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeVar

T = TypeVar("T")
Object = dict[str, Any]


def read_object(path: Path) -> Object:
    """The JSON object that a file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds anything else.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError("no JSON") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def field(found: Object, name: str, kind: type[T]) -> T:
    """A field of that type; a bool is no int here.

    Raises:
        ValueError: it is absent, or of another type.
    """
    if name not in found:
        raise ValueError(f"no {name}")
    value = found[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {short(value)}, not of type {kind.__name__}")
    return value


def number(found: Object, name: str) -> float:
    """A field that is a finite number.

    Raises:
        ValueError: it is anything else.
    """
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise ValueError(f"{name} is {short(value)}, not a finite number")
    return value


def positive(found: Object, name: str) -> float:
    """A field that is a finite number above zero.

    Raises:
        ValueError: it is anything else.
    """
    value = number(found, name)
    if value <= 0:
        raise ValueError(f"{name} is {value}, not above zero")
    return value


def optional(found: Object, name: str, read: Callable[[Object, str], T]) -> T | None:
    """A field as ``read`` reads it; None where it is null or absent."""
    return None if found.get(name) is None else read(found, name)


def text(found: Object, name: str) -> str:
    """A field that is a string."""
    return field(found, name, str)


def count(found: Object, name: str) -> int:
    """A field that is an integer of at least zero.

    Raises:
        ValueError: it is anything else.
    """
    value = field(found, name, int)
    if value < 0:
        raise ValueError(f"{name} is {short(value)}, less than zero")
    return value


def objects(found: Object, name: str) -> list[Object]:
    """A field that is a list of objects.

    Raises:
        ValueError: it is anything else.
    """
    values = field(found, name, list)
    for value in values:
        if not isinstance(value, dict):
            raise ValueError(f"{name} holds {short(value)}, which is no object")
    return values


def each(found: Object, name: str, read: Callable[[Object], T]) -> dict[str, T]:
    """A field that is an object of objects, each as ``read`` reads it.

    Raises:
        ValueError: it is anything else.
    """
    values = field(found, name, dict)
    return {key: read(field(values, key, dict)) for key in values}
