"""The pictures of a report, as SVG that follows the page's colours and as PNG that reads on light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crane.bench.results import Row, exponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = "#808890"  # reads on white and on black; in SVG it becomes the page's own text colour
OURS = "#e0562b"
COLOURS = ("#3f8fd6", "#2ba57a", "#a97be0", "#c9961a", "#d9679f", "#5fb3b3", "#8f8f5a", "#9a6b4f")
MARKERS = "osD^vPX*"
_STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Picture:
    """One picture in both forms; ``name`` is its file's, without the ending."""

    name: str
    svg: str
    png: bytes

    def write_png(self, path: Path) -> None:
        """Write the PNG to ``path``."""
        path.write_bytes(self.png)


def case_picture(title: str, rows: Sequence[Row]) -> Picture:
    """Speed-up by scale, time and memory against size, of one case on all its scales."""
    peers = peer_names(rows)

    def draw(figure: Figure) -> None:
        speed, time, memory = figure.subplots(1, 3)
        _draw_speedups(speed, rows, peers)
        _draw_growth(time, rows, peers, "seconds", "time", "s")
        _draw_growth(memory, rows, peers, "peak_bytes", "peak memory", "B")
        handles, labels = time.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)

    return _render(slug(title), (13, 3.7 + 0.25 * (len(peers) // 4)), draw)


def overview_picture(rows: Sequence[Row]) -> Picture:
    """The speed-up over every peer of each case, at its largest scale; the fastest peer's is filled."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            fastest = row.fastest_peer
            others = [peer.ratio for name, peer in row.peers.items() if name != fastest]
            axes.plot(others, [place] * len(others), "o", color=COLOURS[0], markerfacecolor="none")
            if fastest is not None:
                axes.plot(row.peers[fastest].ratio, place, "o", color=OURS, markersize=8)
        axes.plot([], [], "o", color=OURS, markersize=8, label="over the fastest peer")
        axes.plot([], [], "o", color=COLOURS[0], markerfacecolor="none", label="over each other peer")
        _finish_ratios(axes, [f"{row.title}, {row.scale}" for row in rows])
        figure.legend(loc="outside lower center", ncols=2)

    return _render("speed-up", (9, 1.4 + 0.3 * len(rows)), draw)


def fraction_picture(rows: Sequence[Row]) -> Picture:
    """How near each case comes to the machine's measured limit, at its largest scale."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bounds = sorted({str(row.bound) for row in rows})
        for place, row in enumerate(rows):
            value = 100 * (row.fraction or 0.0)
            axes.barh(place, value, height=0.6, color=COLOURS[bounds.index(str(row.bound))])
            axes.annotate(f"{value:.0f}%", (value, place), (4, 0), textcoords="offset points", va="center", color=INK)
        for number, bound in enumerate(bounds):
            axes.barh([0], [0], color=COLOURS[number], label=f"bound by {bound}")
        axes.axvline(100, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{row.title}, {row.scale}" for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel="% of the measured limit", ylabel="")
        axes.margins(x=0.1)
        figure.legend(loc="outside lower center", ncols=len(bounds))

    return _render("fraction-of-limit", (9, 1.4 + 0.3 * len(rows)), draw)


def peer_names(rows: Sequence[Row]) -> list[str]:
    """The peers of any of the rows, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.peers))


def slug(title: str) -> str:
    """A title as a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _draw_speedups(axes: Axes, rows: Sequence[Row], peers: Sequence[str]) -> None:
    for number, name in enumerate(peers):
        found = [(row.peers[name].ratio, place) for place, row in enumerate(rows) if name in row.peers]
        axes.plot(*zip(*found, strict=True), MARKERS[number % 8], color=COLOURS[number % 8])
    _finish_ratios(axes, [row.scale for row in rows])
    axes.set(title="times as fast as", xlabel="")


def _finish_ratios(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 2.2))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xlabel="times as fast as the peer")
    axes.grid(True)


def _draw_growth(axes: Axes, rows: Sequence[Row], peers: Sequence[str], field: str, title: str, unit: str) -> None:
    lines = [("this package", OURS, "o", [(row.size, getattr(row, field)) for row in rows])]
    for number, name in enumerate(peers):
        values = [(row.size, getattr(row.peers[name], field)) for row in rows if name in row.peers]
        lines.append((name, COLOURS[number % 8], MARKERS[number % 8], values))
    for label, colour, marker, values in lines:
        points = [(x, y) for x, y in values if y]
        slope = exponent(points)
        text = label if slope is None else f"{label} ∝ n^{slope:.2f}"
        width = 2.4 if colour == OURS else 1.2
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=width, label=text)
    axes.set(title=title, xlabel=f"n, {rows[0].unit}")
    if any(y for _, _, _, values in lines for _, y in values):
        axes.set(xscale="log", yscale="log")
        _finish_logarithmic(axes.xaxis, "")
        _finish_logarithmic(axes.yaxis, unit)
        axes.grid(True)
    else:
        axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", color=INK)
        axes.set(xticks=[], yticks=[])


def _finish_logarithmic(axis: Axis, unit: str) -> None:
    """Few ticks, in words such as "20 ms"."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(EngFormatter(unit))


def _render(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> Picture:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=130, transparent=True)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(name, _inline(svg.getvalue()), png.getvalue())


def _inline(svg: str) -> str:
    """The <svg> element, without what repeats from picture to picture, in the page's colours and as wide as it is."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z]+[A-Za-z0-9.]*_\d+"', "", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    return svg.replace(INK, "var(--ink)")
