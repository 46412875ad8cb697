"""What the machine can do at most, measured: the denominators of every fraction that is reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

WIDTH = 64  # of a gathered row
TABLES = (2**21, 2**23, 2**25, 2**26, 2**28)  # bytes


@dataclass(frozen=True)
class Limits:
    """Rates of one device, in float32.

    Attributes:
        stream: bytes a second of a copy, read and written ones counted.
        gather: bytes a second of random rows of 64 numbers, read and summed, by the bytes of their table.
        matmul: floating-point operations a second of a square product.
    """

    stream: float
    gather: dict[int, float]
    matmul: float

    def gather_from(self, table: int) -> float:
        """The rate for a table of that many bytes: that of the next larger one measured."""
        fitting = [size for size in self.gather if size >= table]
        return self.gather[min(fitting, default=max(self.gather))]


@dataclass(frozen=True)
class Work:
    """The least that a computation must do, however it is done.

    Attributes:
        bytes: read or written in order.
        gathered: read row by row from random places.
        flops: floating-point operations.
        table: bytes of what is gathered from.
    """

    bytes: int = 0
    gathered: int = 0
    flops: int = 0
    table: int = 0

    def least_seconds(self, limits: Limits) -> float:
        """The time that a machine of these limits needs at least, memory and arithmetic side by side."""
        times = self._times(limits)
        return max(times["stream"] + times["gather"], times["matmul"])

    def bound(self, limits: Limits) -> str:
        """Which limit most of that time comes from."""
        times = self._times(limits)
        return max(times, key=times.__getitem__)

    def times(self, n: int) -> Work:
        """The same work ``n`` times."""
        return Work(n * self.bytes, n * self.gathered, n * self.flops, self.table)

    def _times(self, limits: Limits) -> dict[str, float]:
        return {
            "stream": self.bytes / limits.stream,
            "gather": self.gathered / limits.gather_from(self.table),
            "matmul": self.flops / limits.matmul,
        }


def seconds(run: Callable[[], object], device: str, calls: int = 1) -> float:
    """The time of one of so many consecutive calls: by the device's own events on a GPU."""
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - started) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


@lru_cache
def limits(device: str, quick: bool) -> Limits:
    """Measure a device with the threads torch has now: the best of several turns of each."""
    turns = 2 if quick else 5
    source = torch.ones(2**26, device=device)  # 256 MiB
    target = torch.empty_like(source)
    side = torch.empty(2048, 2048, device=device).normal_()

    def best(run: Callable[[], object]) -> float:
        return min(seconds(run, device) for _ in range(turns + 1))

    def gather(table: torch.Tensor) -> float:
        # A bag of 64 rows at a time is summed in registers: nothing but the rows and their indices is read.
        index = torch.randint(len(table), (4096, 64), device=device)
        read = index.numel() * WIDTH * table.element_size()
        return read / best(lambda: torch.nn.functional.embedding_bag(index, table, mode="sum"))

    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    gathered = {size: gather(source[: size // 4].view(-1, WIDTH)) for size in TABLES}
    return Limits(copied, gathered, 2 * len(side) ** 3 / best(lambda: side @ side))
