"""Sparse times dense on the normalised user-item graph, on a power-law graph of 10^7 edges, and with a hub row."""

from __future__ import annotations

from functools import partial

import peers
import pytest
import scales
import torch
from machine import Work
from measuring import Measure, anything
from torch import Tensor

from crane_kernels import Graph, spmm
from crane_kernels.spmm import reference

OPERATION = "spmm"
REAL_DATA = True
DIM = 64
FLOAT32, BALANCED = "this package, float32", "this package, edges spread evenly"
AT_LEAST_CSR = 2.0  # times as fast as torch.sparse in CSR


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


@pytest.mark.parametrize("case", peers.CASES)
def test_spmm(
    case: str,
    measure: Measure,
    graph: Graph,
    requested: str | None,
    not_compiled: str | None,
    too_many_edges: str | None,
) -> None:
    x = features(graph)
    compiled = not_compiled or partial(peers.compiled(reference.spmm), graph)
    others = {**peers.products(graph), peers.COMPILED: compiled}
    if too_many_edges is not None:
        others |= dict.fromkeys((name for name in others if "COO" in name), too_many_edges)
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
    measure.at_least("torch.sparse CSR", AT_LEAST_CSR)


@pytest.mark.parametrize("case", peers.CASES)
def test_spmm_power_law(
    case: str, measure: Measure, device: str, requested: str | None, quick: bool, in_full: bool
) -> None:
    if quick or (case == peers.FORWARD and not in_full):
        pytest.skip(peers.TOO_LONG if quick else peers.TOO_MANY)
    graph = scales.power_law_graph().to(device)
    x = features(graph)
    others = {
        "torch.sparse CSR": partial(torch.sparse.mm, peers.adjacency(graph, "CSR")),
        "torch_sparse": peers.torch_sparse_product(graph),
    }
    measure(
        peers.run(partial(spmm, graph, implementation=requested), (x,), case),
        {name: peers.run(product, (x,), case) for name, product in others.items()},
        case=f"power-law graph, {case}",
        scale="power law",
        size=graph.nnz,
        unit="edges",
        work=product_work(graph, DIM).times(1 + (case == peers.BACKWARD)),
    )
    measure.at_least("torch.sparse CSR", AT_LEAST_CSR)


def test_spmm_bfloat16(measure: Measure, device: str, requested: str | None, quick: bool) -> None:
    """Half the bytes of float32, whose sums it keeps."""
    if quick:
        pytest.skip(peers.TOO_LONG)
    graph = scales.power_law_graph().to(device)
    x = features(graph).detach()
    single, half = graph, graph.to(torch.bfloat16)
    measure(
        partial(spmm, half, x.bfloat16(), implementation=requested),
        {FLOAT32: partial(spmm, single, x, implementation=requested)},
        case="power-law graph, bfloat16",
        scale="power law",
        size=graph.nnz,
        unit="edges",
        agree=anything,
    )
    measure.at_least(FLOAT32, 1.3)


@pytest.mark.parametrize("count", [1, 2], ids=["1 thread", "2 threads"])
def test_spmm_hub(count: int, measure: Measure, device: str, requested: str | None, quick: bool) -> None:
    """A row of half of all edges costs no more than the same edges spread evenly."""
    torch.set_num_threads(count)
    balanced, hub = (scales.hub_graph(share, quick).to(device) for share in (0.0, 0.5))
    x = features(balanced).detach()
    measure(
        partial(spmm, hub, x, implementation=requested),
        {BALANCED: partial(spmm, balanced, x, implementation=requested)},
        case=f"hub of half of all edges, threads: {count}",
        scale="hub",
        size=hub.nnz,
        unit="edges",
        work=product_work(hub, DIM),
        agree=anything,
    )
    measure.at_least(BALANCED, 1 / 1.15)
