"""Sparse times dense on the normalised user-item graph against ``torch.sparse.mm``, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crane.data import Dataset
from crane_kernels import Graph, propagate, spmm

DIM = 64
LAYERS = 3
ROUNDS = 100
AT_LEAST = {"csr": 3.0, "coalesced": 10.0, "uncoalesced": 10.0}


def adjacency(graph: Graph, layout: str) -> Tensor:
    """The graph as existing code holds it."""
    csr = graph.to_torch()
    if layout == "csr":
        return csr
    coo = csr.to_sparse_coo()
    if layout == "coalesced":
        return coo.coalesce()
    return torch.sparse_coo_tensor(coo.indices(), coo.values(), coo.shape, check_invariants=False)


@pytest.fixture(scope="module")
def graph(dataset: Dataset) -> Graph:
    """D^-1/2 A D^-1/2 over users and items."""
    return dataset.graph("train").bipartite().normalize("symmetric")


@pytest.fixture
def x(graph: Graph) -> Tensor:
    return torch.randn(graph.n_cols, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", AT_LEAST)
def test_forward(compare: Callable[..., None], graph: Graph, x: Tensor, layout: str) -> None:
    theirs = adjacency(graph, layout)
    torch.testing.assert_close(spmm(graph, x, implementation="cpp"), torch.sparse.mm(theirs, x))
    compare(lambda: torch.sparse.mm(theirs, x), lambda: spmm(graph, x), AT_LEAST[layout], ROUNDS)


@pytest.mark.parametrize("layout", AT_LEAST)
def test_forward_and_backward(compare: Callable[..., None], graph: Graph, x: Tensor, layout: str) -> None:
    theirs, x, grad = adjacency(graph, layout), x.requires_grad_(), torch.ones_like(x)
    compare(
        lambda: torch.autograd.grad(torch.sparse.mm(theirs, x), x, grad),
        lambda: torch.autograd.grad(spmm(graph, x), x, grad),
        AT_LEAST[layout],
        ROUNDS,
    )


@pytest.mark.parametrize("layout", AT_LEAST)
def test_propagation(compare: Callable[..., None], graph: Graph, x: Tensor, layout: str) -> None:
    theirs = adjacency(graph, layout)

    def usual() -> Tensor:
        layers = [x]
        for _ in range(LAYERS):
            layers.append(torch.sparse.mm(theirs, layers[-1]))
        return torch.stack(layers, dim=1).mean(dim=1)

    torch.testing.assert_close(propagate(graph, x, LAYERS, implementation="cpp"), usual())
    compare(usual, lambda: propagate(graph, x, LAYERS), AT_LEAST[layout], ROUNDS // 4)
