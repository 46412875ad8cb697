"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from crane.config import EvaluationConfig


def plain_table(header: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A table of a title, a header and rows, with a line under the header."""
    table = Table(*header, title=title, box=box.SIMPLE, title_justify="left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def metrics_table(evaluation: EvaluationConfig, values: dict[str, float], title: str) -> Table:
    """One row a metric, one column a cut-off."""
    return plain_table([title, *(f"@{k}" for k in evaluation.ks)], evaluation.rows(values))
