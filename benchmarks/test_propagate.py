"""Three layers of propagation and their mean, as LightGCN's forward, against the same over torch's sparse matrices.

A training step needs the rows of its batch alone: ours computes those and what they reach, others compute all. Two
layers, as most models of this kind take.
"""

from __future__ import annotations

from functools import partial

import peers
import pytest
import torch
from measuring import Measure
from test_spmm import DIM, features, product_work
from torch import Tensor

from crane_kernels import Graph, propagate
from crane_kernels.propagate import reference

OPERATION = "propagate"
REAL_DATA = True
LAYERS = 3
BATCH, BATCH_LAYERS = 2048, 2
ALL_ROWS = "this package, all rows"
AT_LEAST_ALL_ROWS = {"elec": 1.8, "large": 4.0}  # times as fast as all rows


def layer_mean(product: peers.Function, x: Tensor, count: int = LAYERS) -> Tensor:
    """Propagation as LightGCN's code has it."""
    layers = [x]
    for _ in range(count):
        layers.append(product(layers[-1]))
    return torch.stack(layers, dim=1).mean(dim=1)


def layer_means(graph: Graph, not_compiled: str | None, too_many_edges: str | None) -> dict[str, peers.Function | str]:
    """What others propagate with."""
    products = peers.products(graph)
    if too_many_edges is not None:
        products |= dict.fromkeys(products, too_many_edges)
    means = {
        name: product if isinstance(product, str) else partial(layer_mean, product)
        for name, product in products.items()
    }
    compiled = not_compiled or (lambda x: peers.compiled(reference.propagate)(graph, x, LAYERS))
    return {**means, peers.COMPILED: compiled}


@pytest.mark.parametrize("case", peers.CASES)
def test_propagate(
    case: str,
    measure: Measure,
    graph: Graph,
    requested: str | None,
    not_compiled: str | None,
    too_many_edges: str | None,
) -> None:
    x = features(graph)
    others = layer_means(graph, not_compiled, too_many_edges)
    measure(
        peers.run(lambda x: propagate(graph, x, LAYERS, implementation=requested), (x,), case),
        {name: peers.run(mean, (x,), case) for name, mean in others.items()},
        case=case,
        size=graph.nnz,
        unit="edges",
        work=product_work(graph, DIM).times(LAYERS * (1 + (case == peers.BACKWARD))),
    )


def batch_nodes(graph: Graph) -> Tensor:
    """The nodes of 2048 training triples: interactions, each user and item as often as it has any, and any items."""
    row, col = graph.row().cpu(), graph.col.cpu().long()
    users, items = row[row < col], col[row < col]  # users come first
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(len(users), (BATCH,), generator=generator)
    negatives = torch.randint(int(items.min()), graph.n_rows, (BATCH,), generator=generator)
    return torch.cat([users[edges], items[edges], negatives]).to(graph.device)


def test_propagate_rows_of_a_batch(
    measure: Measure, graph: Graph, scale: str, requested: str | None, too_many_edges: str | None
) -> None:
    x = features(graph)
    rows = batch_nodes(graph)

    def ours(x: Tensor, rows: Tensor | None = rows) -> Tensor:
        return propagate(graph, x, BATCH_LAYERS, rows, implementation=requested)

    csr = partial(layer_mean, peers.products(graph)["torch.sparse CSR"], count=BATCH_LAYERS)
    others: dict[str, peers.Function | str] = {
        ALL_ROWS: lambda x: ours(x, None).index_select(0, rows),
        "torch.sparse CSR": too_many_edges or (lambda x: csr(x).index_select(0, rows)),
    }
    measure(
        peers.run(ours, (x,), peers.BACKWARD),
        {name: peers.run(other, (x,), peers.BACKWARD) for name, other in others.items()},
        case="rows of a batch, forward and backward",
        size=graph.nnz,
        unit="edges",
    )
    measure.at_least(ALL_ROWS, AT_LEAST_ALL_ROWS.get(scale, 0))
