"""Telling people's errors from the program's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crane.files import TEMPORARY_SUFFIX


class UserError(Exception):
    """What was asked for cannot be done; the message is one sentence for people."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors with which checks refuse their arguments into a :class:`UserError`.

    Only what reads and checks belongs in the block: afterwards such an error is a defect and keeps its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise UserError(sentence(error)) from error


def sentence(error: Exception) -> str:
    """What an error says, in one line; of a file, its name and the reason."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{str(error.filename).removesuffix(TEMPORARY_SUFFIX)}: {error.strerror}"
    return " ".join(text.split())
