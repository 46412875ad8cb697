"""What the machine can do at most, measured: the denominators of every fraction that is reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

WIDTH = 64  # of a gathered row
SIZES = tuple(2**n for n in range(20, 30))  # bytes: from what a core's own cache holds to what no cache does


@dataclass(frozen=True)
class Limits:
    """Rates of one device, in float32.

    Attributes:
        stream: bytes a second of a copy between arrays that no cache holds, read and written ones counted.
        copies: the same by the bytes read and written, few of which a cache holds.
        gather: bytes a second of random rows of 64 numbers, read and summed, by the bytes of their table.
        matmul: floating-point operations a second of a square product.
    """

    stream: float
    copies: dict[int, float]
    gather: dict[int, float]
    matmul: float


def rate_of(rates: dict[int, float], size: int) -> float:
    """The rate for so many bytes: that of the next larger size measured."""
    fitting = [measured for measured in rates if measured >= size]
    return rates[min(fitting, default=max(rates))]


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
            "stream": self.bytes / rate_of(limits.copies, self.bytes),
            "gather": self.gathered / rate_of(limits.gather, self.table),
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


def limits(device: str, quick: bool) -> Limits:
    """Measure a device with the threads torch has now, once: the best of several turns of each."""
    return _limits(device, quick, torch.get_num_threads())


@lru_cache
def _limits(device: str, quick: bool, _threads: int) -> Limits:
    turns = 2 if quick else 5
    source = torch.ones(2**26, device=device)  # 256 MiB
    target = torch.empty_like(source)
    side = torch.empty(2048, 2048, device=device).normal_()

    def best(run: Callable[[], object], calls: int = 1) -> float:
        return min(seconds(run, device, calls) for _ in range(turns + 1))

    def copy(size: int) -> float:
        half = size // 2 // source.element_size()
        return size / best(lambda: target[:half].copy_(source[:half]), max(1, SIZES[-4] // size))

    def gather(size: int) -> float:
        # A bag of 256 rows at a time is summed in registers: nothing but the rows and their indices is read.
        table = source[: size // source.element_size()].view(-1, WIDTH)
        index = torch.randint(len(table), (1024, 256), device=device, dtype=torch.int32)
        read = index.numel() * WIDTH * table.element_size()
        return read / best(lambda: torch.nn.functional.embedding_bag(index, table, mode="sum"))

    copies = {size: copy(size) for size in SIZES}
    gathered = {size: gather(size) for size in SIZES[:-1]}
    return Limits(copies[SIZES[-1]], copies, gathered, 2 * len(side) ** 3 / best(lambda: side @ side))
