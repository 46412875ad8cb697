"""The graph of every item's 10 nearest by cosine, against the whole similarity matrix and faiss's exact search."""

from __future__ import annotations

from functools import partial

import peers
import scales
import torch
import torch.nn.functional as F
from machine import Work
from measuring import Measure
from torch import Tensor

from crane_kernels import Graph, knn_graph

OPERATION = "knn_graph"
NOT_AT_LARGEST = ("test_knn_graph",)
SCALES = ("baby",)
WIDTH, K = 64, 10


def whole_matrix(features: Tensor) -> Graph:
    """As LATTICE and FREEDOM build it: an I x I matrix, torch.topk, equal weights."""
    unit = F.normalize(features, dim=1)
    neighbours = torch.topk(unit @ unit.T, K).indices
    rows = torch.arange(len(features), device=features.device).repeat_interleave(K)
    value = torch.full((neighbours.numel(),), 1 / K, device=features.device)
    return Graph.from_edges(rows, neighbours.flatten(), value, (len(features),) * 2)


def agree(ours: Graph, theirs: Graph | tuple[Tensor, Tensor]) -> None:
    """The same neighbours but for those that float32 cannot tell apart."""
    found = theirs.col.long().view(-1, K) if isinstance(theirs, Graph) else theirs[1].sort(1).values
    assert (ours.col.view(-1, K) == found).float().mean() > 0.999


def test_knn_graph(measure: Measure, scale: str, device: str, requested: str | None) -> None:
    n = scales.SIZES[scale].items
    features = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0)).to(device)
    unit = F.normalize(features, dim=1)
    measure(
        partial(knn_graph, features, K, implementation=requested),
        {
            "whole matrix and torch.topk": partial(whole_matrix, features),
            "faiss, exact": peers.faiss_search(unit, unit, K),
        },
        size=n,
        unit="items",
        work=Work(features.nbytes, 0, 2 * n * n * WIDTH),
        agree=agree,
    )
