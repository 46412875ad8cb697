"""The meaning of ``prune_edges`` in numpy."""

from __future__ import annotations

import numpy as np
import torch

from crane_kernels.graph import Graph


def prune_edges(graph: Graph, keep: float, generator: np.random.Generator) -> Graph:
    """Keep round(keep * nnz) edges, at least one, drawn by weight without replacement.

    The edges with the smallest keys Exp(1) / weight are a weighted sample without replacement (Efraimidis and
    Spirakis 2006, in its exponential form): one key for each edge in CSR order, by one call of
    ``generator.standard_exponential``. Equal keys, such as those of edges that weigh nothing, go by position.
    """
    if graph.nnz == 0:
        return graph
    count = max(1, round(keep * graph.nnz))
    weight = graph.normalize("symmetric").value.detach().double().cpu().numpy()
    with np.errstate(divide="ignore"):
        key = generator.standard_exponential(graph.nnz) / weight
    kept = np.zeros(graph.nnz, dtype=bool)
    kept[np.argsort(key, kind="stable")[:count]] = True
    mask = torch.from_numpy(kept).to(graph.device)
    before = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.cumsum(0)])
    return Graph(before[graph.rowptr], graph.col[mask], graph.value[mask], graph.shape)
