"""Three layers of propagation and their mean, as LightGCN's forward, against the same over torch's sparse matrices."""

from __future__ import annotations

from functools import partial

import peers
import pytest
import torch
from measuring import Measure
from test_spmm import DIM, features, product_work
from torch import Tensor

from crane_kernels import Graph, dispatch, propagate
from crane_kernels.propagate import reference

OPERATION = "propagate"
LAYERS = 3


def layer_mean(product: peers.Function, x: Tensor) -> Tensor:
    """Propagation as LightGCN's code has it."""
    layers = [x]
    for _ in range(LAYERS):
        layers.append(product(layers[-1]))
    return torch.stack(layers, dim=1).mean(dim=1)


@pytest.mark.parametrize("case", peers.CASES)
def test_propagate(case: str, measure: Measure, graph: Graph, requested: str | None, quick: bool) -> None:
    x = features(graph)
    others = {
        name: product if isinstance(product, str) else partial(layer_mean, product)
        for name, product in peers.products(graph).items()
    }
    compiled = peers.TOO_LONG if quick else lambda x: peers.compiled(reference.propagate)(graph, x, LAYERS)
    measure(
        peers.run(lambda x: propagate(graph, x, LAYERS, implementation=requested), (x,), case),
        {name: peers.run(other, (x,), case) for name, other in {**others, peers.COMPILED: compiled}.items()},
        case=case,
        size=graph.nnz,
        unit="edges",
        implementation=dispatch.choose(OPERATION, requested, graph, x, LAYERS).implementation.name,
        work=product_work(graph, DIM).times(LAYERS * (1 + (case == peers.BACKWARD))),
    )
