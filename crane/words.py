"""Numbers and their nouns in text for people."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``1 item``, ``2,000 items``: the number and the noun, whose plural ends in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
