"""Times ours and its peers turn by turn and records what the report and the regression guard read."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import machine
import memory
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from crane_kernels import Graph, dispatch

Run = Callable[[], Any]
Peer = Run | str  # what to time, or why it cannot be timed here
ROUNDS = (5, 60)
QUICK_ROUNDS = (3, 15)
BUDGET, QUICK_BUDGET = 0.5, 0.25  # seconds for the rounds of ours and all peers, beyond which no peer is timed again
SLOW, QUICK_SLOW = 0.5, 0.1  # seconds of a call that is not warmed up, nor measured for how many calls make a turn
OFTEN = 0.2  # the share of all time for which ours, which every ratio hangs on, is timed after each peer
COMPILES = "torch.compile"  # in the name of a peer: its first call compiles
TURN, QUICK_TURN = 20e-3, 5e-3  # seconds a turn takes about, or more: its first call finds caches as others left them


class Measure:
    """Measures one case: see :meth:`__call__`."""

    def __init__(
        self, benchmark: BenchmarkFixture, device: str, quick: bool, hold: bool, where: dict[str, str]
    ) -> None:
        self.benchmark = benchmark
        self.device = device
        self.quick = quick
        self.hold = hold
        self.where = where

    def __call__(
        self,
        ours: Run,
        peers: dict[str, Peer],
        *,
        size: int,
        unit: str,
        case: str = "",
        scale: str | None = None,
        work: machine.Work | None = None,
        agree: Callable[[Any, Any], None] | None = None,
        warm_up: bool = True,
        rounds: int | None = None,
    ) -> None:
        """Time ``ours`` and ``peers`` in turn, so that what slows the machine for a while slows all of them.

        Args:
            ours: what the product does.
            peers: by name, others that do the same, or the reason why one cannot run.
            size: what the cost grows with, in ``unit``.
            unit: such as "edges".
            case: what of the operation this is.
            scale: how large, in a word; None: the test's own scale.
            work: the least that has to be done.
            agree: raises unless the result of a peer (second) is that of ours (first); None: equal but for rounding.
            warm_up: whether to run everything once before, but for slow peers (off: ours takes many seconds a call).
            rounds: how many turns, of all; None: as many as fit a budget of time, of slow peers fewer.
        """
        runnable = {name: peer for name, peer in peers.items() if not isinstance(peer, str)}
        if warm_up:
            ours()
        once = {}  # what calls take: enough to know of slow ones
        with serving() as served:
            expected, peak, once[""] = self._peak(ours)
        served_by = served.get(self.where["operation"]) or ", ".join(sorted(set(served.values()))) or "torch"
        peaks, found = {}, None
        for name, run in runnable.items():
            if COMPILES in name:
                run()
                gc.freeze()  # what it imported and made stays
            found, peaks[name], once[name] = self._peak(run)
            if warm_up and once[name] < self._slow:
                found, peaks[name], once[name] = self._peak(run)
            (agree or same)(expected, found)
        del expected, found
        times = self._time(ours, runnable, once, rounds)
        seconds = statistics.median(times.pop(""))
        self.benchmark.group = " ".join(filter(None, (self.where["operation"], case)))
        self.benchmark.extra_info |= {
            **self.where,
            **({} if scale is None else {"scale": scale}),
            "case": case,
            "size": size,
            "unit": unit,
            "device": self.device,
            "implementation": served_by,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "quick": self.quick,
            "seconds": seconds,
            "peak_bytes": peak,
            "peers": {
                name: {
                    "seconds": statistics.median(values),
                    "ratio": statistics.median(values) / seconds,
                    "peak_bytes": peaks[name],
                }
                for name, values in times.items()
            },
            "not_run": {name: reason for name, reason in peers.items() if isinstance(reason, str)},
        }
        if work is not None:
            self.benchmark.extra_info |= self._fraction(work, seconds)
        self._print(seconds)

    def at_least(self, peer: str, ratio: float) -> None:
        """With ``--hold``, fail where ours is not ``ratio`` times as fast as ``peer`` on the CPU."""
        found = self.benchmark.extra_info["peers"][peer]["ratio"]
        assert not self.hold or self.device != "cpu" or found >= ratio, f"{found:.2f}x {peer}, expected {ratio}x"

    def _peak(self, run: Run) -> tuple[Any, int | None, float]:
        """The result of a call, the most memory that it held, and about how long it took.

        That is without tidying up before it, which takes long in a process that holds much.
        """
        results: list[Any] = []
        seconds, peak = memory.peak(lambda: machine.seconds(lambda: results.append(run()), self.device), self.device)
        return results.pop(), peak, seconds

    def _time(
        self, ours: Run, peers: dict[str, Run], once: dict[str, float], rounds: int | None
    ) -> dict[str, list[float]]:
        """The seconds of each turn by peer; ours under the empty name, more often where that takes little."""
        times: dict[str, list[float]] = {name: [] for name in ("", *peers)}
        order = itertools.cycle([list(peers), list(peers)[::-1]])
        for name, run in {"": ours, **peers}.items():
            if once[name] < self._slow:
                once[name] = machine.seconds(run, self.device)
            if once[name] < self._turn:  # a single call finds cold caches
                once[name] = machine.seconds(run, self.device, 5)
        calls = {name: max(1, round(self._turn / max(seconds, 1e-6))) for name, seconds in once.items()}
        turns = {name: seconds * calls[name] for name, seconds in once.items()}
        often = len(turns) * turns[""] < OFTEN * sum(turns.values())

        def time_peers() -> None:
            due = [name for name in next(order) if sum(times[name]) * calls[name] < patience]
            for place, name in enumerate(due):
                if often and place > 0:
                    time_ours()
                times[name].append(machine.seconds(peers[name], self.device, calls[name]))

        def time_ours() -> None:
            times[""].append(machine.seconds(ours, self.device, calls[""]))

        patience = self._budget if rounds is None else math.inf
        if rounds is None:
            rounds = self._rounds(sum(turns.values()))
        self.benchmark.pedantic(time_ours, setup=time_peers, rounds=rounds)
        self._report_calls(times[""], calls[""])
        return times

    def _report_calls(self, seconds: list[float], calls: int) -> None:
        """Let pytest-benchmark report what a call took, not a turn."""
        if self.benchmark.stats is not None:
            self.benchmark.stats.iterations = calls
            self.benchmark.stats.stats.data[:] = seconds

    def _rounds(self, seconds: float) -> int:
        """How many turns of that length fit the budget."""
        least, most = QUICK_ROUNDS if self.quick else ROUNDS
        return max(least, min(most, int(self._budget / max(seconds, 1e-6))))

    @property
    def _slow(self) -> float:
        return QUICK_SLOW if self.quick else SLOW

    @property
    def _turn(self) -> float:
        return QUICK_TURN if self.quick else TURN

    @property
    def _budget(self) -> float:
        return QUICK_BUDGET if self.quick else BUDGET

    def _fraction(self, work: machine.Work, seconds: float) -> dict[str, Any]:
        limits = machine.limits(self.device, self.quick)
        return {
            "bytes": work.bytes + work.gathered,
            "flops": work.flops,
            "bytes_per_second": (work.bytes + work.gathered) / seconds,
            "flops_per_second": work.flops / seconds,
            "fraction": work.least_seconds(limits) / seconds,
            "bound": work.bound(limits),
        }

    def _print(self, seconds: float) -> None:
        info = self.benchmark.extra_info
        peers = "; ".join(
            [f"{name} {peer['ratio']:.2f}x" for name, peer in info["peers"].items()]
            + [f"{name} not run: {reason}" for name, reason in info["not_run"].items()]
        )
        fraction = f", {info['fraction']:.0%} of {info['bound']}" if "fraction" in info else ""
        print(f"\n{self.benchmark.name}: {info['implementation']} {seconds * 1e3:.3f} ms{fraction}; {peers}")


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Notes which implementation serves each operation that is called in the block."""
    found: dict[str, str] = {}
    call = dispatch.call

    def noting(operation: str, requested: str | None, *args: Any, **kwargs: Any) -> Any:
        found[operation] = dispatch.choose(operation, requested, *args, **kwargs).implementation.name
        return call(operation, requested, *args, **kwargs)

    dispatch.call = noting
    try:
        yield found
    finally:
        dispatch.call = call


def same(ours: Any, theirs: Any) -> None:
    """The same tensors (or arrays, graphs, or several of them) but for the rounding of float32."""
    for a, b in zip(_tensors(ours), _tensors(theirs), strict=True):
        scale = float(a.detach().abs().max()) if a.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * scale + 1e-8)


def anything(_ours: Any, _theirs: Any) -> None:
    """For what is random, or is checked by the module itself."""


def _tensors(result: Any) -> Iterable[torch.Tensor]:
    if isinstance(result, Graph):
        return [result.rowptr, result.col.long(), result.value]
    if isinstance(result, tuple | list):
        return [tensor for part in result for tensor in _tensors(part)]
    return [torch.as_tensor(result)]
