"""``sample_negatives`` with the search for the drawn items compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.graph import Graph


def sample_negatives(graph: Graph, users: Tensor, rank: np.ndarray[Any, Any]) -> Tensor:
    """The ``rank``-th item, from 0, that each of ``users`` has no edge to: (B,) int64."""
    rowptr, col = graph.rowptr.cpu().numpy(), graph.col.cpu().numpy()
    rows = users.cpu().long().contiguous().numpy()
    return torch.from_numpy(extension.host().sample_negatives(rowptr, col, rows, rank)).to(users.device)
