"""Numbers, nouns and names in text for people."""

from __future__ import annotations

from collections.abc import Sequence

_LISTED = 5


def counted(number: int, noun: str) -> str:
    """``1 item``, ``2,000 items``: the number and the noun, whose plural ends in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Sequence[str]) -> str:
    """``u1, u2``: the first few names, and dots where there are more."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
