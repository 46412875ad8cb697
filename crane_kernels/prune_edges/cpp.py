"""``prune_edges`` with the selection compiled; the keys are the reference's, so the kept edges too."""

from __future__ import annotations

import numpy as np
import torch

from crane_kernels import extension
from crane_kernels.graph import Graph


def refuses(graph: Graph, *_: object) -> str | None:
    """Why the compiled selection cannot prune ``graph``; ``None`` when it can."""
    if graph.device.type != "cpu":
        return f"the graph is on device {graph.device}, not on the CPU"
    if graph.dtype not in (torch.float32, torch.float64):
        return f"the graph's values have dtype {graph.dtype}, not float32 or float64"
    return None


def prune_edges(graph: Graph, keep: float, generator: np.random.Generator) -> Graph:
    """Keep round(keep * nnz) edges, at least one, drawn by weight without replacement."""
    if graph.nnz == 0:
        return graph
    count = max(1, round(keep * graph.nnz))
    weight = graph.normalize("symmetric").value.detach().numpy()
    draws = generator.standard_exponential(graph.nnz)
    positions, rowptr = extension.host().prune_edges(graph.rowptr.numpy(), weight, draws, count)
    kept = torch.from_numpy(positions)
    return graph._subset(kept, torch.from_numpy(rowptr))
