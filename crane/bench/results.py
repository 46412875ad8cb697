"""The measured rows in the JSON of ``pytest benchmarks --benchmark-only --benchmark-json``."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Peer:
    """Another way to compute the same, timed in turn with ours.

    Attributes:
        seconds: median of a call.
        ratio: ``seconds`` over ours: how many times as fast ours is.
        peak_bytes: most memory held during a call, if it could be measured.
        ratios: where these are the medians of several runs, the ratio of each.
    """

    seconds: float
    ratio: float
    peak_bytes: int | None
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """One measured case.

    Attributes:
        operation: what is measured.
        case: which part or way of it; may be empty.
        scale: name of the size.
        backend: "cpu", or the implementation asked for on a GPU.
        size: what the cost grows with, counted in ``unit``.
        unit: such as "edges".
        implementation: what served the calls.
        seconds: median of a call.
        peak_bytes: most memory held during a call beyond that before it, if it could be measured.
        fraction: of the machine's measured limit that the least work at this speed is; None without a count of it.
        bound: which limit that is: "stream", "gather" or "matmul".
        peers: by name.
        not_run: peers that could not run, and why.
        quick: whether it was a run with few rounds.
    """

    operation: str
    case: str
    scale: str
    backend: str
    size: int
    unit: str
    implementation: str
    seconds: float
    peak_bytes: int | None
    fraction: float | None
    bound: str | None
    peers: dict[str, Peer]
    not_run: dict[str, str]
    quick: bool

    @property
    def title(self) -> str:
        """Operation, case and, on a GPU, implementation: what a picture is about."""
        parts = [self.operation, self.case, self.backend if self.backend != "cpu" else ""]
        return ", ".join(part for part in parts if part)

    @property
    def name(self) -> str:
        """Title and scale: a name no other row of a run has."""
        return f"{self.title}, {self.scale}"

    @property
    def fastest_peer(self) -> str | None:
        """The peer that takes the least time."""
        return min(self.peers, key=lambda name: self.peers[name].seconds, default=None)


@dataclass(frozen=True)
class Results:
    """One run of the benchmarks.

    Attributes:
        rows: in the order they were measured.
        not_run: operation, scale, backend and reason of each case that was left out.
        machine: processor, threads, versions and what serves each operation.
        limits: by device, measured bytes or operations a second; of gathering, by the bytes of the table.
        time: when, as ISO 8601.
        runs: of how many runs these are the medians.
    """

    rows: tuple[Row, ...]
    not_run: tuple[dict[str, str], ...]
    machine: dict[str, Any]
    limits: dict[str, dict[str, Any]]
    time: str
    runs: int = 1

    def by_title(self) -> dict[str, list[Row]]:
        """The rows of each picture, from small to large."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.title, []).append(row)
        return {title: sorted(rows, key=lambda row: row.size) for title, rows in groups.items()}


def load(path: Path) -> Results:
    """Read one run.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON of these benchmarks, or holds no rows.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(_row(benchmark["extra_info"]) for benchmark in document["benchmarks"])
        machine = document["machine_info"]
        results = Results(rows, tuple(document["not_run"]), machine["crane"], machine["limits"], document["datetime"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: found no results of these benchmarks ({error!r}), expected what pytest benchmarks "
            "--benchmark-only --benchmark-json FILE writes"
        ) from error
    if not rows:
        raise ValueError(f"{path}: found no measured case, expected at least one")
    return results


def merged(runs: Sequence[Results]) -> Results:
    """All cases of several runs, with the medians of what is in more than one; machine, limits and time of the last."""
    rows: dict[str, list[Row]] = {}
    for row in (row for run in runs for row in run.rows):
        rows.setdefault(row.name, []).append(row)
    not_run = {tuple(case.items()): case for run in runs for case in run.not_run}
    return replace(
        runs[-1],
        rows=tuple(_median_row(found) for found in rows.values()),
        not_run=tuple(not_run.values()),
        runs=sum(run.runs for run in runs),
    )


def _median_row(rows: Sequence[Row]) -> Row:
    found: dict[str, list[Peer]] = {}
    for name, peer in (pair for row in rows for pair in row.peers.items()):
        found.setdefault(name, []).append(peer)
    peers = {
        name: Peer(
            statistics.median(peer.seconds for peer in values),
            statistics.median(peer.ratio for peer in values),
            _median(peer.peak_bytes for peer in values),
            tuple(ratio for peer in values for ratio in peer.ratios or (peer.ratio,)) if len(values) > 1 else (),
        )
        for name, values in found.items()
    }
    return replace(
        rows[-1],
        seconds=statistics.median(row.seconds for row in rows),
        peak_bytes=_median(row.peak_bytes for row in rows),
        fraction=_median(row.fraction for row in rows),
        peers=peers,
        not_run={name: reason for row in rows for name, reason in row.not_run.items() if name not in found},
    )


def _median(values: Iterable[Number | None]) -> Number | None:
    """The lower median of what was measured, which is one of the values; None when nothing was."""
    measured = [value for value in values if value is not None]
    return statistics.median_low(measured) if measured else None


def _row(info: dict[str, Any]) -> Row:
    fields = {name: info[name] for name in Row.__annotations__ if name not in ("peers", "fraction", "bound")}
    peers = {name: Peer(**peer) for name, peer in info["peers"].items()}
    return Row(**fields, peers=peers, fraction=info.get("fraction"), bound=info.get("bound"))


def exponent(points: Iterable[tuple[float, float]]) -> float | None:
    """The b of y = a x^b by least squares on logarithms; None with fewer than three different x."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 3:
        return None
    x_mean, y_mean = _mean([x for x, _ in logs]), _mean([y for _, y in logs])
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in logs)
    return covariance / sum((x - x_mean) ** 2 for x, _ in logs)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
