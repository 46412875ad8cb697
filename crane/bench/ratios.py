"""The regression guard: ratios against named peers, as they once were, that a change must not lose.

A ratio holds on machines of different speeds, unlike a time, because ours and the peer are timed in turn on the same
one. What is left of the noise is in each ratio's own tolerance: a fifth, or more where runs differed by more.
"""

from __future__ import annotations

import errno
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from crane.bench.reading import Object, count, each, field, number, positive, read_object, text
from crane.bench.results import Results
from crane.files import write_text

TOLERANCE = 0.2
MARGIN = 1.5  # of the spread that was seen
MOST = 0.5  # a ratio that varies more says nothing


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as a peer ours is, and which share of that may be lost."""

    ratio: float
    tolerance: float

    @property
    def least(self) -> float:
        """The lowest ratio that passes."""
        return self.ratio * (1 - self.tolerance)


@dataclass(frozen=True)
class Ratios:
    """Ratios by the name of the case, then by peer.

    Attributes:
        threads: with which they were measured.
        torch: with which version.
        quick: whether by quick runs.
        cases: at least one.
    """

    threads: int
    torch: str
    quick: bool
    cases: dict[str, dict[str, Ratio]]

    @classmethod
    def load(cls, path: Path) -> Ratios:
        """Read what :meth:`save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no ratios.
        """
        try:
            found = read_object(path)
            cases = field(found, "cases", dict)
            read = cls(
                count(found, "threads"),
                text(found, "torch"),
                field(found, "quick", bool),
                {case: each(cases, case, _ratio) for case in cases},
            )
            if not any(read.cases.values()):
                raise ValueError("no case")
        except ValueError as error:
            raise ValueError(f"{path}: found no ratios ({error}), expected what crane bench --record writes") from error
        return read

    def save(self, path: Path) -> None:
        """Write them as JSON, to a new file or in the place of other ratios.

        Raises:
            OSError: the file cannot be written.
            ValueError: there is something else.
        """
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if path.exists():
            Ratios.load(path)
        write_text(path, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Finding:
    """A recorded ratio and what was found of it: None when it was not measured."""

    case: str
    peer: str
    expected: Ratio
    found: float | None

    @property
    def holds(self) -> bool:
        """Whether no more is lost than may be."""
        return self.found is not None and self.found >= self.expected.least


def _ratio(info: Object) -> Ratio:
    tolerance = number(info, "tolerance")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}, not between 0 and 1")
    return Ratio(positive(info, "ratio"), tolerance)


def record(runs: Sequence[Results]) -> Ratios:
    """The medians of several runs' ratios; each tolerates a fifth, or half as much again as the runs fell below it."""
    measured: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row in run.rows:
            for peer, values in row.peers.items():
                measured.setdefault(row.name, {}).setdefault(peer, []).append(values.ratio)
    cases = {case: _kept(peers) for case, peers in measured.items()}
    machine = runs[0].machine
    kept = {case: peers for case, peers in cases.items() if peers}
    return Ratios(machine["threads"], machine["versions"]["torch"], runs[0].quick, kept)


def _kept(peers: dict[str, list[float]]) -> dict[str, Ratio]:
    kept = {}
    for peer, values in peers.items():
        middle = statistics.median(values)
        tolerance = max(TOLERANCE, MARGIN * (1 - min(values) / middle))
        if tolerance <= MOST:
            kept[peer] = Ratio(round(middle, 3), round(tolerance, 3))
    return kept


def check(runs: Sequence[Results], expected: Ratios) -> list[Finding]:
    """Compare the best ratio of the runs with every recorded one; a peer that cannot run here is left out."""
    best: dict[tuple[str, str], float] = {}
    missing: set[tuple[str, str]] = set()
    for row in (row for run in runs for row in run.rows):
        missing |= {(row.name, peer) for peer in row.not_run}
        for peer, values in row.peers.items():
            key = row.name, peer
            best[key] = max(values.ratio, best.get(key, 0.0))
    return [
        Finding(case, peer, ratio, best.get((case, peer)))
        for case, peers in expected.cases.items()
        for peer, ratio in peers.items()
        if (case, peer) not in missing
    ]
