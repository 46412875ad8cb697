"""Sparse times dense on the normalised user-item graph, and on a power-law graph of 10^7 edges."""

from __future__ import annotations

from functools import partial

import peers
import pytest
import scales
import torch
from machine import Work
from measuring import Measure
from torch import Tensor

from crane_kernels import Graph, spmm
from crane_kernels.spmm import reference

OPERATION = "spmm"
DIM = 64


def product_work(graph: Graph, width: int) -> Work:
    """Every edge and its row of x once, every row pointer and every row of y once, in float32."""
    edges = graph.nnz * (graph.col.element_size() + 4) + graph.rowptr.nbytes
    return Work(
        bytes=edges + graph.n_rows * width * 4,
        gathered=graph.nnz * width * 4,
        flops=2 * graph.nnz * width,
        table=graph.n_cols * width * 4,
    )


def features(graph: Graph) -> Tensor:
    """The x to multiply by."""
    x = torch.randn(graph.n_cols, DIM, generator=torch.Generator().manual_seed(0))
    return x.to(graph.device).requires_grad_()


def compiled_reference(graph: Graph, quick: bool) -> peers.Function | str:
    """The reference by torch.compile, as a function of x."""
    return peers.TOO_LONG if quick else partial(peers.compiled(reference.spmm), graph)


@pytest.mark.parametrize("case", peers.CASES)
def test_spmm(case: str, measure: Measure, graph: Graph, requested: str | None, quick: bool) -> None:
    x = features(graph)
    others = {**peers.products(graph), peers.COMPILED: compiled_reference(graph, quick)}
    competitors = {name: peers.run(product, (x,), case) for name, product in others.items()}
    if case == peers.FORWARD:
        competitors["scipy, 1 thread"] = peers.scipy_product(graph, x)
    measure(
        peers.run(partial(spmm, graph, implementation=requested), (x,), case),
        competitors,
        case=case,
        size=graph.nnz,
        unit="edges",
        work=product_work(graph, DIM).times(1 + (case == peers.BACKWARD)),
    )


def test_spmm_power_law(measure: Measure, device: str, requested: str | None, quick: bool) -> None:
    if quick:
        pytest.skip(peers.TOO_LONG)
    graph = scales.power_law_graph().to(device)
    x = features(graph).detach()
    matrix = peers.adjacency(graph, "CSR")
    measure(
        partial(spmm, graph, x, implementation=requested),
        {
            "torch.sparse CSR": partial(torch.sparse.mm, matrix, x),
            "torch_sparse": peers.run(peers.torch_sparse_product(graph), (x,)),
            "scipy, 1 thread": peers.scipy_product(graph, x),
        },
        case="power-law graph",
        scale="power law",
        size=graph.nnz,
        unit="edges",
        work=product_work(graph, DIM),
    )
