"""The report: one HTML page that needs nothing else, and its pictures as PNG files beside it."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from crane.bench.charts import Picture, case_picture, fraction_picture, overview_picture, peer_names, slug
from crane.bench.results import Peer, Results, Row, merged
from crane.files import nearest_existing, write_atomically, write_text

PAGE = "index.html"
_STYLE = """
:root { color-scheme: light dark; --ink: #30363d; --paper: #ffffff; --line: #d8dee4; --soft: #f5f7f9; --mark: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d6dce3; --paper: #14181d; --line: #343b44; --soft: #1c2229; --mark: #ff9a6b; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h2 { margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin: 1.5rem 0 .25rem; }
figure { margin: .5rem 0; }
svg { width: 100%; height: auto; max-height: 90rem; }
.narrow svg { max-width: 56rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: right; vertical-align: top; }
th { background: var(--soft); font-weight: 600; }
td { white-space: nowrap; }
.words td { white-space: normal; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
td small { display: block; opacity: .75; }
td b { color: var(--mark); }
nav a { display: inline-block; margin-right: 1rem; }
a { color: inherit; }
"""
_EXPLANATION = """
<p>Every case is timed turn by turn with its peers in one process, so that what slows the machine for a while slows all
of them; times are medians. A ratio is the peer's time over this package's: above 1 this package is faster; of several
runs it is the median, with the least and the most below it. Results are compared before they are timed. Memory is the
most that a call holds beyond what was held before it, its result included; small numbers are rough, since the system
counts pages. The fraction of the limit is the time that the least possible work (every byte read and written once,
every gathered row once an edge, every multiplication) would take at the rates measured on this machine, over the time
it took; caches can lift it above 100%.</p>
"""


def write_page(runs: Sequence[Results], folder: Path) -> Path:
    """Write the report of several runs into ``folder``; what is in several counts by its medians.

    Returns:
        The page's path.

    Raises:
        OSError: the folder cannot be written.
    """
    results = merged(runs)
    _writable(folder)
    groups = results.by_title()
    compared = [[row for row in rows if row.peers] for rows in groups.values()]
    largest = [rows[-1] for rows in compared if rows]
    limited = [rows[-1] for rows in groups.values() if rows[-1].fraction is not None]
    pictures: list[Picture] = []

    def figure(picture: Picture) -> str:
        pictures.append(picture)
        return f'<figure role="img" aria-label="{escape(picture.name)}">{picture.svg}</figure>'

    parts = [_machine(results), _EXPLANATION]
    if largest:
        parts += ['<h2 id="overview">Speed-up at the largest scale with peers</h2><div class="narrow">']
        parts += [figure(overview_picture(largest)), "</div>", _overview_table(largest)]
    if limited:
        parts += ['<h2 id="limits">Fraction of the machine\'s limits</h2><div class="narrow">']
        parts += [figure(fraction_picture(limited)), "</div>", _fraction_table(limited)]
    for operation in dict.fromkeys(row.operation for row in results.rows):
        parts.append(f'<h2 id="{slug(operation)}">{escape(operation)}</h2>')
        for title, rows in groups.items():
            if rows[0].operation == operation:
                parts += [f"<h3>{escape(title)}</h3>", figure(case_picture(title, rows)), _case_table(rows)]
        parts.append(_not_run(results, operation))
    unmeasured = {case["operation"] for case in results.not_run} - {row.operation for row in results.rows}
    parts += [f"<h2>{escape(name)}</h2>{_not_run(results, name)}" for name in sorted(unmeasured)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PAGE, _document(results, "\n".join(parts)))
    for picture in pictures:
        write_atomically(folder / f"{picture.name}.png", picture.write_png)
    return folder / PAGE


def _writable(folder: Path) -> None:
    """Raise an OSError where ``folder`` plainly cannot be made or written, before the pictures take their time."""
    there = nearest_existing(folder)
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def _document(results: Results, body: str) -> str:
    operations = dict.fromkeys(row.operation for row in results.rows)
    links = [("overview", "Overview"), ("limits", "Limits"), *((slug(name), name) for name in operations)]
    nav = "".join(f'<a href="#{target}">{escape(name)}</a>' for target, name in links)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>CRANE benchmarks</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>CRANE benchmarks</h1>\n"
        f"<nav>{nav}</nav>\n{body}\n</body>\n</html>\n"
    )


def _machine(results: Results) -> str:
    machine = results.machine
    several = f"medians of {results.runs} runs, of which this is the last" if results.runs > 1 else ""
    quick = "quick" if results.quick else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    rows = [
        ("measured", ", ".join(filter(None, (results.time[:16].replace("T", " "), several, quick)))),
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used"),
        ("instruction set", machine["instruction_set"] or "torch's own"),
        ("devices", ", ".join(machine["devices"])),
        ("versions", versions),
    ]
    for device, limits in results.limits.items():
        gather = ", ".join(
            f"{rate / 1e9:.0f} GB/s from {size / 2**20:.0f} MiB" for size, rate in limits["gather"].items()
        )
        copy, product = f"copy {limits['stream'] / 1e9:.0f} GB/s", f"product {limits['matmul'] / 1e9:.0f} GFLOP/s"
        rows.append((f"limits of {device}", f"{copy}; random rows {gather}; {product}"))
    return _table([], rows, words=True)


def _overview_table(rows: Iterable[Row]) -> str:
    cells = []
    for row in rows:
        fastest = row.fastest_peer
        if fastest is not None:
            peer = row.peers[fastest]
            slowest = max(peer.ratio for peer in row.peers.values())
            times = seconds(row.seconds), seconds(peer.seconds)
            cells.append((row.title, row.scale, times[0], fastest, times[1], ratio(peer.ratio), ratio(slowest)))
    header = ["case", "scale", "this package", "fastest peer", "its time", "speed-up", "over the slowest"]
    return _table(header, cells)


def _fraction_table(rows: Iterable[Row]) -> str:
    cells = [(row.title, row.scale, seconds(row.seconds), percent(row.fraction or 0), row.bound) for row in rows]
    return _table(["case", "scale", "time", "fraction", "of the limit of"], cells)


def _case_table(rows: Sequence[Row]) -> str:
    peers = peer_names(rows)
    header = ["scale", rows[0].unit, "this package", "served by", "of the limit", *peers]
    cells = []
    for row in rows:
        ours = f"{seconds(row.seconds)}<small>{_bytes(row.peak_bytes)}</small>"
        fraction = "" if row.fraction is None else f"{percent(row.fraction)}<small>{row.bound}</small>"
        line = [escape(row.scale), f"{row.size:,}", ours, escape(row.implementation), fraction]
        for name in peers:
            peer = row.peers.get(name)
            line.append("not run" if peer is None else _peer_cell(peer))
        cells.append(line)
    absent = {name: reason for row in rows for name, reason in row.not_run.items()}
    notes = "; ".join(f"{name}: not run, {reason}" for name, reason in absent.items())
    return _table([escape(h) for h in header], cells, raw=True) + (f"<p>{escape(notes)}.</p>" if notes else "")


def _peer_cell(peer: Peer) -> str:
    between = f"<small>{ratio(min(peer.ratios))} to {ratio(max(peer.ratios))}</small>" if peer.ratios else ""
    return f"{ratio(peer.ratio)}{between}<small>{seconds(peer.seconds)}, {_bytes(peer.peak_bytes)}</small>"


def _not_run(results: Results, operation: str) -> str:
    counts = Counter((c["backend"], c["reason"]) for c in results.not_run if c["operation"] == operation)
    rows = [(backend, f"not run: {reason}", f"{count} cases") for (backend, reason), count in counts.items()]
    return _table(["backend", "", ""], rows, words=True) if rows else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], *, words: bool = False, raw: bool = False) -> str:
    def cell(value: object) -> str:
        return str(value) if raw else escape(str(value))

    lines = ["<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows]
    head = "<tr>" + "".join(f"<th>{cell(name)}</th>" for name in header) + "</tr>" if header else ""
    kind = ' class="words"' if words else ""
    return f'<div class="table"><table{kind}>{head}{"".join(lines)}</table></div>'


def seconds(value: float) -> str:
    """A time in the unit that fits, to three digits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(value: float) -> str:
    """A speed-up, to three digits at most."""
    return f"{value:.3g}×" if value < 100 else f"{value:.0f}×"


def percent(value: float) -> str:
    """A fraction in percent, whole from one on."""
    return f"{value:.0%}" if value >= 0.01 else f"{value:.1%}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "memory unknown"
    return f"{value / 2**20:,.1f} MiB"
