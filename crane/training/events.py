"""TensorBoard events, as an option."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EventWriter:
    """Writes an epoch's record as scalars, into a folder that is made at the first one.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "training.tensorboard is true, but TensorBoard is not installed: pip install tensorboard"
            ) from error
        self.folder = folder
        self._open = SummaryWriter

    def write(self, record: dict[str, Any]) -> None:
        """Write one epoch; a continued run overwrites what an interrupted one wrote for it and later ones."""
        # Opened and closed each epoch, so that a killed run has written all its epochs.
        writer = self._open(str(self.folder), purge_step=record["epoch"])
        for name, value in _scalars(record):
            writer.add_scalar(name, value, record["epoch"])
        writer.close()


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield "loss/total", record["loss"]
    yield "learning_rate", record["learning_rate"]
    yield "seconds/train", record["train_seconds"]
    for name, value in record["parts"].items():
        yield f"loss/{name}", value
    for name, value in (record["validation"] or {}).items():
        yield f"validation/{name}", value
