"""``propagate``: the compiled kernel against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import MANY_ROWS, graphs, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crane_kernels import Graph, extension, propagate

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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


@pytest.mark.parametrize("wanted", [[], [0], [2, 0, 1, 2, 2]], ids=str)
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_rows_match_float64(name: str, layers: int, wanted: list[int]) -> None:
    graph = NORMALISED[name].normalize("symmetric")
    rows = torch.tensor([row for row in wanted if row < graph.n_rows], dtype=torch.int32)
    if name == "hub" and len(wanted) > 1:
        rows = torch.cat([rows, torch.arange(1900, 2100, dtype=torch.int32)])
    x = torch.randn(graph.n_rows, 9, dtype=torch.float64, requires_grad=True)
    results = []
    for implementation in ("cpp", "reference"):
        y = propagate(graph, x, layers, rows, implementation=implementation)
        grad = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        results.append((y, *torch.autograd.grad(y, x, grad)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("compiled", "large_memory")
def test_more_than_2_to_the_31_elements() -> None:
    """Rows of a batch among so many: an offset in 32 bits would reach the same place of another row."""
    rows = torch.tensor([0, MANY_ROWS - 1])
    graph = Graph.from_edges([0, MANY_ROWS - 1], [2**25, 0], [2.0, 4.0], (MANY_ROWS, MANY_ROWS)).to(torch.bfloat16)
    x = torch.empty(MANY_ROWS, 64, dtype=torch.bfloat16)  # takes memory where it is written to
    x[[0, 2**25, MANY_ROWS - 1]] = torch.tensor([[1.0], [3.0], [5.0]], dtype=x.dtype)
    y = propagate(graph, x, 1, rows, implementation="cpp")
    assert torch.equal(y.float(), torch.tensor([[3.5], [4.5]]).expand(2, 64))


@pytest.mark.parametrize("rows", [None, torch.arange(3, 18000), torch.tensor([5, 17, 17])], ids=("all", "many", "few"))
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 64), (torch.float32, 80), (torch.float64, 64)], ids=str)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_layers_that_pass_the_caches_by(dtype: torch.dtype, width: int, rows: Tensor | None) -> None:
    """Results of several MiB are written in other ways, in between and at the end."""
    graph = random_graph(18000, 18000, 60000, hub_edges=9000)
    graph = graph.with_value(graph.value.abs()).normalize("row").to(dtype)
    x = torch.randn(graph.n_rows, width, dtype=dtype, requires_grad=True)
    results = []
    for implementation, own in (("cpp", x), ("reference", x.detach().double().requires_grad_())):
        y = propagate(graph.to(own.dtype), own, 3, rows, implementation=implementation)
        results.append((y.double(), torch.autograd.grad(y.square().sum(), own)[0].double()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.usefixtures("compiled")
def test_rows_of_one_side(layers: int) -> None:
    """Users alone reach items alone, and those users: never most of the edges."""
    graph = random_graph(400, 300, 6000).bipartite().to(torch.float32)
    x, rows = torch.randn(700, 8, requires_grad=True), torch.arange(0, 400, 2)
    found, full = (propagate(graph, x, layers, wanted, implementation="cpp") for wanted in (rows, None))
    assert torch.equal(found, full[rows])
    grad = torch.randn_like(found)
    (of_found,), (of_full,) = (torch.autograd.grad(y, x, grad) for y in (found, full[rows]))
    assert torch.equal(of_found, of_full)


@given(graphs(square=True), st.integers(0, 4), st.sampled_from([torch.float32, torch.bfloat16]), st.data())
@settings(deadline=None, max_examples=100)
def test_generated_graphs(graph: Graph, layers: int, dtype: torch.dtype, data: st.DataObject) -> None:
    reason = extension.missing()
    if reason is not None:
        pytest.skip(reason)
    graph = graph.with_value(graph.value.abs()).normalize("row").to(dtype)
    wanted = data.draw(st.none() | st.lists(st.integers(0, max(graph.n_rows - 1, 0)), max_size=2 * graph.n_rows))
    rows = None if wanted is None else torch.tensor(wanted if graph.n_rows else [], dtype=torch.int64)
    x = torch.randn(graph.n_rows, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for implementation, kind in (("cpp", dtype), ("reference", torch.float64)):
        own = x.to(kind).requires_grad_()
        y = propagate(graph, own, layers, rows, implementation=implementation)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(kind)
        results.append([t.double() for t in (y, *torch.autograd.grad(y, own, grad))])
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [None, [4, 0, 4]], ids=str)
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.usefixtures("compiled")
def test_gradients_of_values(layers: int, rows: list[int] | None) -> None:
    graph = random_graph(5, 5, 9)
    wanted = None if rows is None else torch.tensor(rows)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    value = graph.value.clone().requires_grad_()
    results = []
    for implementation in ("cpp", "reference"):
        y = propagate(graph.with_value(value), x, layers, wanted, implementation=implementation)
        results.append(torch.autograd.grad(y.square().sum(), (x, value), materialize_grads=True))
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("rows", [None, [0, 3]])
@pytest.mark.usefixtures("compiled")
def test_saves_no_activations(layers: int, rows: list[int] | None) -> None:
    graph = Graph.from_edges([0, 0, 1], [0, 2, 1], shape=(2, 3)).bipartite().normalize("symmetric")
    x = torch.randn(5, 4, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        propagate(graph, x, layers, None if rows is None else torch.tensor(rows))
    assert saved
    assert {tensor.dim() for tensor in saved} == {1}  # the graph's arrays and the rows


def test_leading_dimensions() -> None:
    graph, x = random_graph(5, 5, 9), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    for rows in (None, torch.tensor([4, 0])):
        found = propagate(graph, x, 2, rows)
        expected = torch.stack([propagate(graph, m, 2, rows) for m in x.reshape(6, 5, 4)])
        torch.testing.assert_close(found, expected.view(found.shape))


def test_is_the_mean_of_the_layers() -> None:
    graph, x = SQUARE["general"], torch.randn(60, 5, dtype=torch.float64)
    dense = graph.to_dense()
    expected = (x + dense @ x + dense @ dense @ x) / 3
    torch.testing.assert_close(propagate(graph, x, 2), expected)


@pytest.mark.parametrize("rows", [None, [4, 0, 4]], ids=str)
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_gradcheck(implementation: str, rows: list[int] | None) -> None:
    graph, wanted = random_graph(5, 5, 9), None if rows is None else torch.tensor(rows)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: propagate(graph, x, 3, wanted, implementation=implementation), (x,))
    assert torch.autograd.gradgradcheck(lambda x: propagate(graph, x, 3, wanted, implementation=implementation), (x,))


@pytest.mark.parametrize("rows", [None, [4, 0, 4]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("compiled")
def test_opcheck(dtype: torch.dtype, rows: list[int] | None) -> None:
    graph, wanted = random_graph(5, 5, 9).to(dtype), None if rows is None else torch.tensor(rows)
    transpose = graph.transpose()
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    grad = torch.randn(5 if rows is None else 3, 3, dtype=dtype, requires_grad=True)
    arrays = graph.rowptr, graph.col, graph.value, transpose.rowptr, transpose.col, transpose.value
    torch.library.opcheck(torch.ops.crane_kernels.propagate, (*arrays, x, 2, wanted))
    torch.library.opcheck(torch.ops.crane_kernels.propagate_t, (*arrays, grad, 2, wanted))


@pytest.mark.usefixtures("compiled")
def test_compiles_without_graph_break() -> None:
    graph = random_graph(5, 5, 9)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda x, rows: propagate(graph, x, 2, rows), fullgraph=True, backend="aot_eager")
    for rows in (None, torch.tensor([1, 4, 1])):
        y = compiled(x, rows)
        expected = propagate(graph, x, 2, rows, implementation="reference")
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.square().sum(), x), torch.autograd.grad(expected.square().sum(), x)
        )


class Propagation(torch.nn.Module):
    """Propagation over a fixed graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return propagate(self.graph, x, 2, rows)


@pytest.mark.usefixtures("compiled")
def test_exports() -> None:
    graph, x, rows = random_graph(5, 5, 9), torch.randn(5, 3), torch.tensor([1, 4])
    exported = torch.export.export(Propagation(graph), (x, rows))
    torch.testing.assert_close(exported.module()(x, rows), Propagation(graph)(x, rows))


@pytest.mark.usefixtures("compiled")
def test_operator_refuses_values_that_are_learned() -> None:
    graph, x = random_graph(5, 5, 9), torch.randn(5, 3, dtype=torch.float64)
    arrays = graph.rowptr, graph.col, graph.value.clone().requires_grad_(), None, None, None
    with pytest.raises(RuntimeError, match="value: found values that require gradients"):
        torch.ops.crane_kernels.propagate(*arrays, x, 2, None)


@pytest.mark.usefixtures("compiled")
def test_same_bits_for_every_number_of_threads() -> None:
    graph, x = SQUARE["hub"].to(torch.float32), torch.randn(4000, 64, requires_grad=True)
    rows = torch.arange(0, 4000, 3)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found: list[Tensor] = []
            for wanted in (None, rows):
                y = propagate(graph, x, 3, wanted, implementation="cpp")
                found += [y, *torch.autograd.grad(y.square().sum(), x)]
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("count", [1, 40, 2500, 4000])
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", ["general", "hub"])
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_rows_have_the_bits_of_all_rows(name: str, layers: int, count: int) -> None:
    """However much of the graph the rows reach: few or most of its edges, layer by layer."""
    graph = NORMALISED[name].normalize("symmetric").to(torch.float32)
    x = torch.randn(graph.n_rows, 33, requires_grad=True)
    rows = torch.randperm(graph.n_rows, generator=torch.Generator().manual_seed(0))[:count]
    results = []
    for wanted in (rows, rows.sort().values):
        found = propagate(graph, x, layers, wanted, implementation="cpp")
        full = propagate(graph, x, layers, implementation="cpp").index_select(0, wanted)
        grad = torch.randn_like(full)
        results += [(found, full), tuple(torch.autograd.grad(y, x, grad)[0] for y in (found, full))]
    assert all(torch.equal(found, full) for found, full in results)


@pytest.mark.parametrize(
    ("graph", "layers", "error", "message"),
    [
        (random_graph(4, 5, 3), 1, ValueError, r"graph: found shape \(4, 5\), expected a square graph"),
        (random_graph(5, 5, 3), -1, ValueError, "layers: found -1, expected at least 0"),
        (random_graph(5, 5, 3), 1.0, TypeError, "layers: found 1.0, expected an int"),
        (random_graph(5, 5, 3), True, TypeError, "layers: found True, expected an int"),
        (random_graph(5, 5, 3), np.array([1, 2]), TypeError, r"layers: found array\(\[1, 2\]\), expected an int"),
        (random_graph(5, 5, 3), 2**70, ValueError, f"layers: found {2**70}, expected at most 2\\^63 - 1"),
        (random_graph(6, 6, 3), 1, ValueError, "x: found 5 rows, expected 6"),
    ],
)
def test_refuses_wrong_arguments(graph: Graph, layers: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        propagate(graph, torch.randn(5, 3), layers)


def test_takes_integers_of_numpy() -> None:
    graph, x = random_graph(5, 5, 9), torch.randn(5, 3)
    assert torch.equal(propagate(graph, x, np.int64(2)), propagate(graph, x, 2))  # type: ignore[arg-type]


def test_rows_of_a_batch_are_refused() -> None:
    graph, x = random_graph(5, 5, 9), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"^rows: found a batch of torch\.func\.vmap, expected indices that all of it"):
        torch.func.vmap(lambda rows: propagate(graph, x, 2, rows))(torch.tensor([[0], [1]]))
