"""``sample_negatives`` with the search for the drawn items compiled; draws and items are the reference's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.graph import Graph


def sample_negatives(graph: Graph, users: Tensor, generator: np.random.Generator) -> Tensor:
    """One item for each of ``users``, uniform over those without an edge: (B,) int64."""
    rowptr, col = graph.rowptr.cpu().numpy(), graph.col.cpu().numpy()
    rows = users.cpu().long().contiguous().numpy()
    rank = generator.integers(0, graph.n_cols - (rowptr[rows + 1] - rowptr[rows]))
    return torch.from_numpy(extension.host().sample_negatives(rowptr, col, rows, rank)).to(users.device)
