"""A random subset of a graph's edges that spares those of low degree."""

from __future__ import annotations

import numpy as np

from crane_kernels import checks, dispatch, extension
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.prune_edges import cpp, reference

dispatch.register(
    "prune_edges",
    Implementation("cpp", cpp.prune_edges, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.prune_edges),
)


def prune_edges(
    graph: Graph, keep: float, generator: np.random.Generator, *, implementation: str | None = None
) -> Graph:
    """Keep a random fraction of the edges of a users x items graph, sampled without replacement.

    One edge after the other is drawn with probability proportional to its weight in the symmetrically normalised
    graph, 1 / sqrt(d_u d_i) for values of one (degree-sensitive pruning: FREEDOM, Zhou and Shen 2023). The graph for
    propagation is ``kept.bipartite().normalize("symmetric")``.

    Args:
        graph: users x items, values of at least zero. It stays as it is.
        keep: fraction of the edges to keep, above 0, at most 1; round(keep * nnz) are kept, but never none.
        generator: all randomness; the same state gives the same edges.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        Graph of the same shape: the kept edges in CSR order with the values they had in ``graph``.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: ``keep`` out of range, or negative values.
        RuntimeError: the requested implementation cannot serve the call.
    """
    checks.instance("graph", graph, Graph)
    if checks.positive("keep", keep) > 1:
        raise ValueError(f"keep: found {keep}, expected a fraction above 0 and at most 1")
    checks.instance("generator", generator, np.random.Generator)
    result: Graph = dispatch.call("prune_edges", implementation, graph, float(keep), generator)
    return result
