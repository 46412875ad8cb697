"""``sparse_mm`` in the place of ``torch.sparse.mm``, on the very tensors that existing code holds."""

from __future__ import annotations

from functools import partial

import peers
import pytest
import torch
from measuring import Measure
from test_spmm import DIM, features, product_work

from crane_kernels import Graph, sparse_mm

OPERATION = "sparse_mm"
SCALES = ("baby",)


@pytest.mark.parametrize("layout", ["CSR", "COO, uncoalesced"])
def test_sparse_mm(layout: str, measure: Measure, graph: Graph) -> None:
    x, matrix = features(graph), peers.adjacency(graph, layout)
    measure(
        peers.run(partial(sparse_mm, matrix), (x,), peers.BACKWARD),
        {"torch.sparse.mm": peers.run(partial(torch.sparse.mm, matrix), (x,), peers.BACKWARD)},
        case=f"{layout}, forward and backward",
        size=graph.nnz,
        unit="edges",
        work=product_work(graph, DIM).times(2),
    )
