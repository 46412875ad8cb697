"""The measured rows in the JSON of ``pytest benchmarks --benchmark-only --benchmark-json``."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from crane.bench.reading import Object, count, each, field, objects, optional, positive, read_object, text

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

    @property
    def quick(self) -> bool:
        """Whether the runs had few rounds."""
        return self.rows[0].quick

    def by_title(self) -> dict[str, list[Row]]:
        """The rows of each picture, from small to large."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.title, []).append(row)
        return {title: sorted(rows, key=lambda row: row.size) for title, rows in groups.items()}


def load(paths: Sequence[Path]) -> list[Results]:
    """Read runs of one kind, quick or not.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file holds no whole run of these benchmarks, or is given twice, or the runs are of both kinds.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"found the same file twice among {', '.join(map(str, paths))}, expected a file a run")
    runs = [_load(path) for path in paths]
    if len({run.quick for run in runs}) > 1:
        raise ValueError("found quick runs beside others, expected runs of one kind: what they measure differs")
    return runs


def _load(path: Path) -> Results:
    try:
        document = read_object(path)
        results = _results(document)
    except ValueError as error:
        raise ValueError(
            f"{path}: found no results of these benchmarks ({error}), expected what pytest benchmarks "
            "--benchmark-only --benchmark-json FILE writes"
        ) from error
    if document.get("interrupted"):
        raise ValueError(f"{path}: found the results of a run that was interrupted, expected those of a whole one")
    if not results.rows:
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
    peers = {name: _median_peer(values) for name, values in found.items()}
    return replace(
        rows[-1],
        seconds=statistics.median(row.seconds for row in rows),
        peak_bytes=_median(row.peak_bytes for row in rows),
        fraction=_median(row.fraction for row in rows),
        peers=peers,
        not_run={name: reason for row in rows for name, reason in row.not_run.items() if name not in found},
    )


def _median_peer(peers: Sequence[Peer]) -> Peer:
    ratios = tuple(ratio for peer in peers for ratio in peer.ratios or (peer.ratio,))
    return Peer(
        statistics.median(peer.seconds for peer in peers),
        statistics.median(ratios),
        _median(peer.peak_bytes for peer in peers),
        ratios if len(ratios) > 1 else (),
    )


def _median(values: Iterable[Number | None]) -> Number | None:
    """The lower median of what was measured, which is one of the values; None when nothing was."""
    measured = [value for value in values if value is not None]
    return statistics.median_low(measured) if measured else None


def _results(document: Object) -> Results:
    rows = [_row(field(benchmark, "extra_info", dict)) for benchmark in objects(document, "benchmarks")]
    names = Counter(row.name for row in rows)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"the case {twice[0]} is there twice")
    if len({row.quick for row in rows}) > 1:
        raise ValueError("some cases are of a quick run")
    not_run = objects(document, "not_run")
    for case in not_run:
        for name in ("operation", "backend", "reason"):
            text(case, name)
    return Results(
        rows=tuple(rows),
        not_run=tuple(not_run),
        machine=_machine(field(field(document, "machine_info", dict), "crane", dict)),
        limits=each(document, "limits", _limits),
        time=text(document, "datetime"),
    )


def _row(info: Object) -> Row:
    return Row(
        operation=text(info, "operation"),
        case=text(info, "case"),
        scale=text(info, "scale"),
        backend=text(info, "backend"),
        size=count(info, "size"),
        unit=text(info, "unit"),
        implementation=text(info, "implementation"),
        seconds=positive(info, "seconds"),
        peak_bytes=optional(info, "peak_bytes", count),
        fraction=optional(info, "fraction", positive),
        bound=optional(info, "bound", text),
        peers=each(info, "peers", _peer),
        not_run={name: text(info["not_run"], name) for name in field(info, "not_run", dict)},
        quick=field(info, "quick", bool),
    )


def _peer(info: Object) -> Peer:
    return Peer(positive(info, "seconds"), positive(info, "ratio"), optional(info, "peak_bytes", count))


def _machine(info: Object) -> Object:
    for name in ("cores", "threads"):
        count(info, name)
    text(info, "processor")
    optional(info, "instruction_set", text)
    text(field(info, "versions", dict), "torch")
    for device in field(info, "devices", list):
        if not isinstance(device, str):
            raise ValueError(f"a device is {device!r}, not of type str")
    return info


def _limits(info: Object) -> Object:
    gather = field(info, "gather", dict)
    return {
        **{name: positive(info, name) for name in ("stream", "matmul")},
        "gather": {int(size): positive(gather, size) for size in gather},
    }


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
