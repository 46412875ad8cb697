"""``propagate``: the compiled kernel against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from graphs import random_graph

from crane_kernels import Graph, propagate

SQUARE = {
    "general": random_graph(60, 60, 300),
    "symmetric": random_graph(30, 40, 300).bipartite(),
    "hub": random_graph(4000, 4000, 4000, hub_edges=9000),
    "no edges": Graph.from_edges([], [], [], (3, 3)),
    "no nodes": Graph.from_edges([], [], [], (0, 0)),
}
NORMALISED = {name: graph.with_value(graph.value.abs(), graph._symmetric) for name, graph in SQUARE.items()}


@pytest.mark.parametrize("width", [1, 3, 64, 70])
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_matches_float64(name: str, layers: int, width: int) -> None:
    graph = NORMALISED[name].normalize("symmetric")
    x = torch.randn(graph.n_rows, width, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    results = []
    for implementation in ("cpp", "reference"):
        y = propagate(graph, x, layers, implementation=implementation)
        results.append((y, *torch.autograd.grad(y, x, grad)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)

    single = propagate(graph, x.detach().float(), layers, implementation="cpp")
    torch.testing.assert_close(single.double(), results[1][0], rtol=1e-5, atol=1e-5)


def test_is_the_mean_of_the_layers() -> None:
    graph, x = SQUARE["general"], torch.randn(60, 5, dtype=torch.float64)
    dense = graph.to_dense()
    expected = (x + dense @ x + dense @ dense @ x) / 3
    torch.testing.assert_close(propagate(graph, x, 2), expected)


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_gradcheck(implementation: str) -> None:
    graph = random_graph(5, 5, 9)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: propagate(graph, x, 3, implementation=implementation), (x,))
    assert torch.autograd.gradgradcheck(lambda x: propagate(graph, x, 3, implementation=implementation), (x,))


@pytest.mark.usefixtures("compiled")
def test_opcheck() -> None:
    graph = random_graph(5, 5, 9)
    transpose = graph.transpose()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    args = graph.rowptr, graph.col, graph.value, transpose.rowptr, transpose.col, transpose.value, x, 2
    torch.library.opcheck(torch.ops.crane_kernels.propagate, args)


@pytest.mark.usefixtures("compiled")
def test_compiles_without_graph_break() -> None:
    graph = random_graph(5, 5, 9)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda x: propagate(graph, x, 2), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), propagate(graph, x, 2, implementation="reference"))


@pytest.mark.usefixtures("compiled")
def test_same_bits_for_every_number_of_threads() -> None:
    graph, x = SQUARE["hub"].to(torch.float32), torch.randn(4000, 64)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(propagate(graph, x, 3, implementation="cpp"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("graph", "layers", "error", "message"),
    [
        (random_graph(4, 5, 3), 1, ValueError, r"graph: found shape \(4, 5\), expected a square graph"),
        (random_graph(5, 5, 3), -1, ValueError, "layers: found -1, expected at least 0"),
        (random_graph(5, 5, 3), 1.0, TypeError, "layers: found 1.0, expected an int"),
        (random_graph(6, 6, 3), 1, ValueError, "x: found 5 rows, expected 6"),
    ],
)
def test_refuses_wrong_arguments(graph: Graph, layers: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        propagate(graph, torch.randn(5, 3), layers)
