"""Text for people on the terminal."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print ``text`` as it is: no markup, no colours, and lines as long as they are."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
