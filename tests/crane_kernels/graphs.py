"""Graphs that break sparse kernels, for tests of several operations."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from crane_kernels import Graph


def random_graph(n_rows: int, n_cols: int, n_edges: int, seed: int = 0, hub_edges: int = 0) -> Graph:
    """Random edges with float64 values of both signs; ``hub_edges`` more in the middle row."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(max(n_rows, 1), (n_edges,), generator=generator)
    row = torch.cat([row, torch.full((hub_edges,), n_rows // 2)])
    col = torch.randint(max(n_cols, 1), (n_edges + hub_edges,), generator=generator)
    value = torch.randn(n_edges + hub_edges, generator=generator, dtype=torch.float64)
    return Graph.from_edges(row, col, value, (n_rows, n_cols))


def row_of(n_edges: int) -> Graph:
    """Three rows; the second holds ``n_edges`` edges, the first and the last one each."""
    row = torch.cat([torch.zeros(1, dtype=torch.int64), torch.ones(n_edges, dtype=torch.int64), torch.tensor([2])])
    col = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(n_edges), torch.tensor([0])])
    value = torch.linspace(-1, 1, n_edges + 2, dtype=torch.float64)
    return Graph.from_edges(row, col, value, (3, n_edges))


# Of rows of 64 elements, the last ones begin beyond 2^31 elements.
MANY_ROWS = 2**25 + 64


GRAPHS = {
    "1x1": Graph.from_edges([0], [0], [2.5], (1, 1)),
    "no edges": Graph.from_edges([], [], [], (5, 4)),
    "no rows": Graph.from_edges([], [], [], (0, 4)),
    "no columns": Graph.from_edges([], [], [], (4, 0)),
    "wide": random_graph(7, 300, 200),
    "tall": random_graph(300, 7, 200),
    "mostly empty rows": random_graph(9000, 40, 100),
    "square": random_graph(60, 60, 400),
    "hub": random_graph(200, 30_000, 6000, hub_edges=6000),
    "longest row in one piece": row_of(2048),
    "shortest row in two pieces": row_of(2049),
    "nothing but hubs": random_graph(2, 30_000, 30_000),
}
WIDTHS = (1, 2, 3, 7, 8, 9, 63, 64, 65, 130, 200)


@st.composite
def graphs(draw: st.DrawFn, square: bool = False) -> Graph:
    """Graphs of up to 12 rows and columns with edges at random, some of them kept twice."""
    n_rows = draw(st.integers(0, 12))
    n_cols = n_rows if square else draw(st.integers(0, 12))
    n_edges = draw(st.integers(0, 60)) if n_rows and n_cols else 0
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    row = torch.randint(max(n_rows, 1), (n_edges,), generator=generator)
    col = torch.randint(max(n_cols, 1), (n_edges,), generator=generator)
    value = torch.randn(n_edges, generator=generator, dtype=torch.float64)
    duplicates = draw(st.sampled_from(["sum", "keep"]))
    return Graph.from_edges(row, col, value, (n_rows, n_cols), duplicates=duplicates)  # type: ignore[arg-type]
