"""Telling people how training goes: a rich progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from crane.console import say

# Reading the loss waits for the device, so it is read for display this often and not every step.
_REFRESH_SECONDS = 0.5


class Reporter(Protocol):
    """What the trainer calls; entered before the first epoch and left after the last."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, epochs: int, steps: int, done: int) -> None:
        """Training will take at most ``epochs`` of ``steps`` steps; ``done`` epochs are behind it."""

    def step(self, loss: Tensor) -> None:
        """A step has been taken; ``loss`` is a scalar that may still be computing."""

    def epoch(self, record: dict[str, Any], metric: str, best: tuple[int, float | None]) -> None:
        """An epoch has ended with ``record``, its line in metrics.jsonl."""


def console_reporter(console: Console) -> Reporter:
    """The reporter that suits the console."""
    return BarReporter(console) if console.is_terminal else LineReporter(console)


class SilentReporter:
    """Says nothing, for use from Python."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start(self, epochs: int, steps: int, done: int) -> None:
        pass

    def step(self, loss: Tensor) -> None:
        pass

    def epoch(self, record: dict[str, Any], metric: str, best: tuple[int, float | None]) -> None:
        pass


class LineReporter(SilentReporter):
    """One line an epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.epochs = epochs
        self.done = done
        self.seconds = 0.0

    def epoch(self, record: dict[str, Any], metric: str, best: tuple[int, float | None]) -> None:
        self.seconds += record["train_seconds"] + (record["evaluate_seconds"] or 0.0)
        number = record["epoch"]
        left = self.seconds / (number - self.done) * (self.epochs - number)
        say(self.console, f"{describe(record, self.epochs, metric, best)}  at most {clock(left)} left")


class BarReporter:
    """A bar over all steps, with the epochs' lines above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[metric]}"),
            TimeElapsedColumn(),
            TextColumn("left at most"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.epochs = epochs
        self.read_at = time.monotonic()
        self.task = self.bar.add_task(
            "train", total=epochs * steps, completed=done * steps, epoch=f"{done + 1}/{epochs}", loss="...", metric=""
        )

    def step(self, loss: Tensor) -> None:
        self.bar.advance(self.task)
        if time.monotonic() - self.read_at >= _REFRESH_SECONDS:
            self.read_at = time.monotonic()
            self.bar.update(self.task, loss=f"{float(loss):.4f}")

    def epoch(self, record: dict[str, Any], metric: str, best: tuple[int, float | None]) -> None:
        number = min(record["epoch"] + 1, self.epochs)
        shown = "" if best[1] is None else f"best {metric} {best[1]:.4f}"
        self.bar.update(self.task, epoch=f"{number}/{self.epochs}", metric=shown)
        line = describe(record, self.epochs, metric, best)
        say(self.bar.console, line)


def describe(record: dict[str, Any], epochs: int, metric: str, best: tuple[int, float | None]) -> str:
    """One epoch in one line."""
    number = f"{record['epoch']:>{len(str(epochs))}}"
    parts = [f"epoch {number}/{epochs}", f"loss {record['loss']:.4f}"]
    if record["validation"] is not None:
        parts.append(f"{metric} {record['validation'][metric]:.4f}")
    if best[1] is not None:
        parts.append(f"(best {best[1]:.4f} at {best[0]})")
    parts.append(f"{record['train_seconds'] + (record['evaluate_seconds'] or 0.0):.2f} s")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
