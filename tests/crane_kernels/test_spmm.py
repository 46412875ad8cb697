"""``spmm``: the compiled kernels against the float64 reference, their derivatives, their life under torch's tools."""

from __future__ import annotations

from typing import Any

import instruction_sets
import pytest
import torch
from graphs import GRAPHS, MANY_ROWS, WIDTHS, graphs, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crane_kernels import Graph, extension, spmm

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCES: tuple[Any, ...] = ("sum", "mean", "max")
ROWS = (None, [], [0], [3, 1, 3, 3, 0])


def learned(graph: Graph, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Graph]:
    """Values that require gradients, and the graph of them."""
    value = graph.value.to(dtype).clone().requires_grad_()
    return value, graph.with_value(value)


def rows_of(graph: Graph, rows: list[int] | None) -> Tensor | None:
    """The rows as a tensor, as far as the graph has them."""
    return None if rows is None else torch.tensor([row for row in rows if row < graph.n_rows], dtype=torch.int64)


def bound(graph: Graph, x: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Error allowed for each element of a product of ``graph`` and ``x``."""
    magnitudes = spmm(graph.with_value(graph.value.abs()), x.abs(), implementation="reference")
    return bound_of_sum(magnitudes, exact, dtype)


def bound_of_sum(magnitudes: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """One rounding, and 16 units of the accumulator for the sum of magnitudes."""
    accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    return 16 * accumulator.eps * magnitudes + torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).tiny


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_matches_float64(name: str, width: int, dtype: torch.dtype) -> None:
    graph = GRAPHS[name].to(dtype)
    x = torch.randn(graph.n_cols, width, dtype=dtype, requires_grad=True)
    grad = torch.randn(graph.n_rows, width, dtype=dtype)
    y = spmm(graph, x, implementation="cpp")
    (grad_x,) = torch.autograd.grad(y, x, grad)

    exact, x64, grad64 = graph.to(torch.float64), x.detach().double().requires_grad_(), grad.double()
    y64 = spmm(exact, x64, implementation="reference")
    (grad_x64,) = torch.autograd.grad(y64, x64, grad64)
    assert ((y - y64).abs() <= bound(exact, x64.detach(), y64, dtype)).all()
    assert ((grad_x - grad_x64).abs() <= bound(exact.transpose(), grad64, grad_x64, dtype)).all()


@pytest.mark.parametrize("width", range(1, 41))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_every_width_around_that_of_a_vector(dtype: torch.dtype, width: int) -> None:
    graph, (value, changed) = GRAPHS["square"].to(dtype), learned(GRAPHS["square"].to(dtype), dtype)
    x = torch.randn(graph.n_cols, width, dtype=dtype, requires_grad=True)
    grad = torch.randn(graph.n_rows, width, dtype=dtype)
    y = spmm(changed, x, implementation="cpp")
    mean, largest = (spmm(graph, x, None, reduce, implementation="cpp") for reduce in ("mean", "max"))
    found = y, mean, largest, *torch.autograd.grad(y, (x, value), grad)

    exact, x64, grad64 = graph.to(torch.float64), x.detach().double(), grad.double()
    sums, means, maxima = (spmm(exact, x64, None, reduce, implementation="reference") for reduce in REDUCES)
    edges = grad64[graph.row()] * x64[graph.col.long()]
    into_x = spmm(exact.transpose(), grad64, implementation="reference")
    for ours, true, error in zip(
        found,
        (sums, means, maxima, into_x, edges.sum(1)),
        (
            *(bound(exact, x64, of, dtype) for of in (sums, means, maxima)),
            bound(exact.transpose(), grad64, into_x, dtype),
            bound_of_sum(edges.abs().sum(1), edges.sum(1), dtype),
        ),
        strict=True,
    ):
        assert ((ours - true).abs() <= error).all()


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_reductions_rows_and_all_gradients(name: str, reduce: Any, rows: list[int] | None) -> None:
    graph, dense_rows = GRAPHS[name], rows_of(GRAPHS[name], rows)
    x = torch.randn(graph.n_cols, 9, dtype=torch.float64, requires_grad=True)
    results = []
    for implementation in ("cpp", "reference"):
        value, changed = learned(graph)
        y = spmm(changed, x, dense_rows, reduce, implementation=implementation)
        grad = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        results.append((y, *torch.autograd.grad(y, (x, value), grad)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    if reduce != "max":  # constant values take another way to the transpose
        (grad_x,) = torch.autograd.grad(spmm(graph, x, dense_rows, reduce, implementation="cpp"), x, grad)
        torch.testing.assert_close(grad_x, results[1][1], rtol=1e-12, atol=1e-12)


@given(graphs(), st.integers(1, 70), st.sampled_from(REDUCES), st.sampled_from(DTYPES), st.data())
@settings(deadline=None, max_examples=150)
def test_generated_graphs(graph: Graph, width: int, reduce: Any, dtype: torch.dtype, data: st.DataObject) -> None:
    reason = extension.missing()
    if reason is not None:
        pytest.skip(reason)
    wanted = st.none() | st.lists(st.integers(0, max(graph.n_rows - 1, 0)), max_size=2 * graph.n_rows)
    rows = rows_of(graph, data.draw(wanted))
    x = torch.randn(graph.n_cols, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for implementation, kind in (("cpp", dtype), ("reference", torch.float64)):
        value, changed = learned(graph.to(dtype), kind)
        own = x.to(kind).requires_grad_()
        y = spmm(changed, own, rows, reduce, implementation=implementation)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(kind)
        results.append([t.double() for t in (y, *torch.autograd.grad(y, (own, value), grad))])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 64 * torch.finfo(dtype).eps
    if reduce == "max" and dtype in (torch.bfloat16, torch.float16):
        return torch.testing.assert_close(results[0][0], results[1][0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    return None


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.usefixtures("compiled")
def test_half_precision_errs_less_than_torch_does(dtype: torch.dtype, reduce: Any) -> None:
    graph = GRAPHS["square"].to(dtype)
    x = torch.randn(60, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = spmm(graph.to(torch.float32), x.float(), None, reduce, implementation="reference")
    ours = (spmm(graph, x, None, reduce, implementation="cpp") - exact).abs().max()
    sums = torch.zeros_like(x).index_add(0, graph.row(), graph.value[:, None] * x[graph.col])
    counts = graph.rowptr.diff().clamp(min=1)[:, None].to(dtype) if reduce == "mean" else 1
    assert ours < (sums / counts - exact).abs().max()


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_mean_of_more_edges_than_half_precision_counts(implementation: str) -> None:
    n = 70_000
    graph = Graph.from_edges(torch.zeros(n, dtype=torch.int64), torch.arange(n), shape=(1, n))
    x = torch.ones(n, 3, dtype=torch.float16, requires_grad=True)
    y = spmm(graph, x, None, "mean", implementation=implementation)
    assert y.tolist() == [[1.0] * 3]
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(grad, torch.full_like(grad, 1 / n))


@pytest.mark.usefixtures("compiled")
def test_half_precision_conversions_are_exact() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    edge = Graph.from_edges([0], [0], [1.0])
    for dtype in (torch.bfloat16, torch.float16):
        x = bits.view(dtype).reshape(1, -1)
        result = spmm(edge, x, implementation="cpp")
        assert torch.equal(result.isnan(), x.isnan())
        assert torch.equal(result[~x.isnan()], x[~x.isnan()])  # each number is loaded and stored again
        both = Graph.from_edges([0, 0], [0, 1], [1.0, 1.0])
        other = x.roll(12345, 1)
        found = spmm(both, torch.cat([x, other]), implementation="cpp")
        expected = (x.float() + other.float()).to(dtype)
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.usefixtures("compiled", "large_memory")
def test_more_than_2_to_the_31_elements() -> None:
    """Gathered from, and written as a gradient: an offset in 32 bits would reach the same place of another row."""
    columns = torch.tensor([0, 2**25, MANY_ROWS - 1])
    graph = Graph.from_edges([0, 1, 1], columns, [1.0, 2.0, 4.0], (2, MANY_ROWS)).to(torch.bfloat16)
    x = torch.empty(MANY_ROWS, 64, dtype=torch.bfloat16)  # takes memory where it is written to
    x[columns] = torch.tensor([[1.0], [3.0], [5.0]], dtype=x.dtype)
    x.requires_grad_()
    y = spmm(graph, x, implementation="cpp")
    assert torch.equal(y[:, 0].float(), torch.tensor([1.0, 26.0]))
    assert bool((y == y[:, :1]).all())
    (grad,) = torch.autograd.grad(y, x, torch.tensor([[1.0], [10.0]], dtype=y.dtype).expand(2, 64))
    assert torch.equal(grad[columns].float(), torch.tensor([[1.0], [20.0], [40.0]]).expand(3, 64))
    assert not grad[1:64].any()
    assert not grad[2**25 + 1 : -1].any()


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(64, torch.float32), (16, torch.float32), (24, torch.float64), (8, torch.float32), (20, torch.float64)],
    ids=["64", "16", "24 of float64", "8, no whole lines", "20 of float64, no whole lines"],
)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_large_results_that_pass_the_caches_by(reduce: Any, width: int, dtype: torch.dtype) -> None:
    n = 2**22 // (width * dtype.itemsize) + 5  # a little more than 4 MiB
    value, graph = learned(random_graph(n, n, 3 * n, hub_edges=5000), dtype)
    x, direction = torch.randn(2, n, width, dtype=dtype)
    x.requires_grad_()
    rows = torch.arange(0, n, 3)  # too few to pass them by
    y = spmm(graph, x, None, reduce, implementation="cpp")
    assert torch.equal(y[rows], spmm(graph, x, rows, reduce, implementation="cpp"))
    truth = spmm(graph, x, None, reduce, implementation="reference")
    torch.testing.assert_close(y, truth, atol=1e-3, rtol=1e-5)  # sums of thousands in two orders
    for found, expected in zip(*(torch.autograd.grad(z, (x, value), direction) for z in (y, truth)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@instruction_sets.unless_named
@instruction_sets.each
@pytest.mark.usefixtures("compiled")
def test_every_instruction_set(isa: str) -> None:
    instruction_sets.passes(
        isa,
        __file__,
        "(matches and (64 or 65 or 9)) or bits or conversions or every_width or large or (reductions and square)",
    )


@pytest.mark.parametrize("name", ["hub", "square", "nothing but hubs", "mostly empty rows"])
@pytest.mark.usefixtures("compiled")
def test_same_bits_for_every_number_of_threads(name: str) -> None:
    value, graph = learned(GRAPHS[name], torch.float32)
    x = torch.randn(graph.n_cols, 65, requires_grad=True)
    rows = torch.arange(0, graph.n_rows, 2)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found: list[Tensor] = []
            for wanted in (None, rows):
                for reduce in REDUCES:
                    y = spmm(graph, x, wanted, reduce, implementation="cpp")
                    found += [y, *torch.autograd.grad(y.square().sum(), (x, value))]
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("compiled")
def test_same_bits_for_int64_columns() -> None:
    graph = GRAPHS["hub"]
    x = torch.randn(graph.n_cols, 9, dtype=torch.float64)
    arrays = graph.rowptr, graph.col.long(), graph.value
    wide = torch.ops.crane_kernels.spmm(*arrays, None, None, None, None, x, None, False)
    assert torch.equal(wide, spmm(graph, x, implementation="cpp"))
    assert torch.equal(torch.ops.crane_kernels.spmm_max(*arrays, x, None)[0], spmm(graph, x, None, "max"))


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_strided_input(implementation: str) -> None:
    graph = random_graph(40, 30, 200).to(torch.float32)
    wide = torch.randn(30, 128)
    expected = graph.to_dense()
    for x in (wide[:, 3:67], wide[:, ::2], torch.randn(64, 30).t(), torch.randn(64).expand(30, 64), wide[:, :1]):
        torch.testing.assert_close(spmm(graph, x, implementation=implementation), expected @ x)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_leading_dimensions(implementation: str, reduce: Any) -> None:
    graph = random_graph(6, 5, 12)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([4, 0, 4])
    for wanted in (None, rows):
        y = spmm(graph, x, wanted, reduce, implementation=implementation)
        apart = [spmm(graph, m, wanted, reduce, implementation=implementation) for m in x.detach().reshape(6, 5, 4)]
        torch.testing.assert_close(y, torch.stack(apart).view(2, 3, -1, 4))
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 3, 0, 3), (2, 0, 0)])
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_leading_dimensions_of_nothing(implementation: str, shape: tuple[int, ...]) -> None:
    graph = Graph.from_edges([], [], shape=(4, 0))
    x = torch.zeros(shape, requires_grad=True)
    y = spmm(graph, x, implementation=implementation)
    assert torch.equal(y, torch.zeros(*shape[:-2], 4, shape[-1]))
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@pytest.mark.usefixtures("compiled")
def test_wide_rows() -> None:
    graph = random_graph(12, 9, 40)
    for width in (0, 257, 4096):
        x = torch.randn(9, width, dtype=torch.float64)
        torch.testing.assert_close(spmm(graph, x, implementation="cpp"), graph.to_dense() @ x)


def test_maximum_of_equals_and_of_none() -> None:
    graph = Graph.from_edges([0, 0, 0, 2], [0, 1, 2, 1], [1.0, 1.0, 1.0, -1.0], (3, 3))
    x = torch.tensor([[2.0], [2.0], [1.0]], dtype=torch.float64, requires_grad=True)
    for implementation in ("cpp", "reference") if extension.missing() is None else ("reference",):
        y = spmm(graph, x, None, "max", implementation=implementation)
        assert y.tolist() == [[2.0], [0.0], [-2.0]]
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[1.0], [-1.0], [0.0]]
        missing = spmm(graph, x.detach().where(x < 2, torch.nan), None, "max", implementation=implementation)
        assert missing.isnan().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize("rows", [None, [3, 1, 3]], ids=str)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_gradcheck(implementation: str, reduce: Any, rows: list[int] | None) -> None:
    graph = random_graph(6, 5, 12)
    wanted = rows_of(graph, rows)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    value = graph.value.clone().requires_grad_()

    def function(value: Tensor, x: Tensor) -> Tensor:
        return spmm(graph.with_value(value), x, wanted, reduce, implementation=implementation)

    assert torch.autograd.gradcheck(function, (value, x))
    assert torch.autograd.gradgradcheck(function, (value, x))
    assert torch.autograd.gradgradcheck(lambda x: spmm(graph, x, wanted, reduce, implementation=implementation), (x,))


@pytest.mark.parametrize("rows", [None, [3, 1, 3]], ids=str)
@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("compiled")
def test_opcheck(dtype: torch.dtype, needs_gradient: bool, rows: list[int] | None) -> None:
    ops, wanted = torch.ops.crane_kernels, None if rows is None else torch.tensor(rows)
    graph = random_graph(6, 5, 12).to(dtype)
    value, _ = learned(graph, dtype)
    rowptr_t, col_t, order = graph.transpose_structure()
    x = torch.randn(5, 3, dtype=dtype, requires_grad=needs_gradient)
    grad = torch.randn(6 if rows is None else 3, 3, dtype=dtype, requires_grad=needs_gradient)
    constant = graph.rowptr, graph.col, graph.value, rowptr_t, col_t, graph.transpose().value, None
    variable = graph.rowptr, graph.col, value, rowptr_t, col_t, None, order
    alone = *constant[:3], None, None, None, None
    for arrays in (constant, variable, alone):
        torch.library.opcheck(ops.spmm, (*arrays, x, wanted, False))
        torch.library.opcheck(ops.spmm_t, (*arrays, grad, wanted, 5))
    torch.library.opcheck(ops.spmm, (*variable, x, wanted, True))
    torch.library.opcheck(ops.sddmm, (*variable[:2], rowptr_t, col_t, order, grad, x, wanted))
    torch.library.opcheck(ops.spmm_max, (*variable[:3], x, wanted))
    torch.library.opcheck(ops.transpose, (graph.rowptr, graph.col, 5))


@pytest.mark.parametrize("built_before", [False, True], ids=["transpose not built", "transpose built"])
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.usefixtures("compiled")
def test_compiles_without_graph_break(reduce: Any, built_before: bool) -> None:
    graph = random_graph(6, 5, 12).to(torch.float32)
    if built_before:
        graph.transpose()
    rows = torch.tensor([4, 0, 4], dtype=torch.int32)
    x = torch.randn(5, 3, requires_grad=True)
    value = graph.value.clone().requires_grad_()

    def captured(x: Tensor, value: Tensor, rows: Tensor | None) -> Tensor:
        return spmm(graph, x, rows, reduce).square().sum() + spmm(graph.with_value(value), x, rows, reduce).sum()

    compiled = torch.compile(captured, fullgraph=True, backend="aot_eager")
    for wanted in (None, rows):
        found = torch.autograd.grad(compiled(x, value, wanted), (x, value))
        expected = torch.autograd.grad(captured(x, value, wanted), (x, value))
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("compiled")
def test_compiles_with_the_graph_passed() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    compiled = torch.compile(lambda graph, x: spmm(graph, x).sum(), fullgraph=True, backend="aot_eager")
    for seed in range(2):
        graph = random_graph(6, 5, 12, seed=seed).to(torch.float32)
        (grad,) = torch.autograd.grad(compiled(graph, x), x)
        torch.testing.assert_close(grad, graph.to_dense().sum(0)[:, None].expand(5, 3))


class Product(torch.nn.Module):
    """A product with a fixed graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return spmm(self.graph, x, rows) + spmm(self.graph, x, None, "mean").sum()


@pytest.mark.usefixtures("compiled")
def test_exports() -> None:
    graph = random_graph(6, 5, 12).to(torch.float32)
    x, rows = torch.randn(5, 3), torch.tensor([1, 5])
    exported = torch.export.export(Product(graph), (x, rows))
    torch.testing.assert_close(exported.module()(x, rows), Product(graph)(x, rows))


@pytest.mark.usefixtures("compiled")
def test_autocast_leaves_the_dtype_of_x() -> None:
    graph = random_graph(6, 5, 12).to(torch.float32)
    x = torch.randn(5, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spmm(graph, x), spmm(graph, x, implementation="cpp"))
        half = spmm(graph, x @ torch.randn(3, 3))
    assert half.dtype == torch.bfloat16
    assert torch.autograd.grad(half.sum(), x)[0].dtype == torch.float32


@pytest.mark.usefixtures("compiled")
def test_saves_no_activation() -> None:
    graph = random_graph(60, 50, 200).to(torch.float32)
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        spmm(graph, torch.randn(50, 8, requires_grad=True), implementation="cpp")
    transpose = graph.transpose()
    own = {t.data_ptr() for g in (graph, transpose) for t in (g.rowptr, g.col, g.value)}
    assert {t.data_ptr() for t in saved} == own


@pytest.mark.usefixtures("compiled")
def test_symmetric_graph_is_never_transposed() -> None:
    graph = random_graph(8, 9, 20).bipartite().to(torch.float32)
    spmm(graph, torch.randn(17, 4, requires_grad=True), implementation="cpp").sum().backward()
    assert graph.transpose() is graph
    assert graph._transpose is None
    assert graph._structure.transposed is None


@pytest.mark.usefixtures("compiled")
def test_operators_refuse_wrong_rows() -> None:
    graph = random_graph(6, 5, 12)
    arrays = graph.rowptr, graph.col, graph.value, None, None, None, None
    with pytest.raises(RuntimeError, match="rows: found 6, expected 0 to 5"):
        torch.ops.crane_kernels.spmm(*arrays, torch.randn(5, 3, dtype=torch.float64), torch.tensor([6]), False)
    with pytest.raises(RuntimeError, match="rows: found -1, expected 0 to 5"):
        torch.ops.crane_kernels.spmm_t(*arrays, torch.randn(1, 3, dtype=torch.float64), torch.tensor([-1]), 5)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(4, 3), ValueError, "x: found 4 rows, expected 5, one for each column of the graph"),
        (torch.randn(5), ValueError, r"x: found shape \(5,\), expected two dimensions"),
        (torch.ones(5, 3, dtype=torch.int64), TypeError, "x: found dtype torch.int64"),
        ([[1.0]], TypeError, "x: found list"),
        (torch.randn(5, 3, device="meta"), ValueError, "x: found on device meta, expected cpu"),
    ],
)
def test_refuses_wrong_x(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spmm(random_graph(6, 5, 12), x)


def test_refuses_other_wrong_arguments() -> None:
    graph, x = random_graph(6, 5, 12), torch.ones(5, 2)
    with pytest.raises(TypeError, match="graph: found Tensor, expected a crane_kernels Graph"):
        spmm(torch.eye(3).to_sparse(), torch.ones(3, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduce: found 'min', expected 'sum', 'mean' or 'max'"):
        spmm(graph, x, reduce="min")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows: found index 6, expected 0 to 5, the rows of graph"):
        spmm(graph, x, torch.tensor([6]))
    with pytest.raises(TypeError, match=r"rows: found dtype torch.float32, expected int64 or int32"):
        spmm(graph, x, torch.ones(2))


def test_forward_mode_derivative_is_the_product_with_the_tangent() -> None:
    graph = Graph.from_edges([0, 0, 2], [1, 2, 0], [1.0, 2.0, 3.0], shape=(3, 3))
    x, tangent = torch.randn(3, 4), torch.randn(3, 4)
    _, found = torch.func.jvp(lambda q: spmm(graph, q), (x,), (tangent,))
    torch.testing.assert_close(found, spmm(graph, tangent))


@pytest.mark.parametrize("reduce", REDUCES)
def test_gradients_by_torch_func(reduce: Any) -> None:
    graph = random_graph(6, 5, 12)
    x, rows = torch.randn(5, 3, dtype=torch.float64), torch.tensor([3, 1, 3])

    def loss(value: Tensor, x: Tensor) -> Tensor:
        return spmm(graph.with_value(value), x, rows, reduce).square().sum()

    own = graph.value.clone().requires_grad_(), x.clone().requires_grad_()
    expected = torch.autograd.grad(loss(*own), own)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(graph.value, x), expected)
    each = torch.func.vmap(torch.func.grad(lambda x: loss(graph.value, x)))(torch.stack([x, x]))
    torch.testing.assert_close(each, torch.stack([expected[1]] * 2))


@pytest.mark.parametrize("differentiated", [False, True])
def test_rows_of_a_batch_are_refused(differentiated: bool) -> None:
    graph, x = random_graph(6, 5, 12), torch.randn(5, 3, dtype=torch.float64)

    def total(x: Tensor, rows: Tensor) -> Tensor:
        return spmm(graph, x, rows).sum()

    function = torch.func.grad(total) if differentiated else total
    with pytest.raises(ValueError, match=r"^rows: found a batch of torch\.func\.vmap, expected indices that all of it"):
        torch.func.vmap(function, (None, 0))(x, torch.tensor([[0], [1]]))


def test_values_of_a_batch() -> None:
    graph, x = random_graph(6, 5, 12), torch.randn(5, 3, dtype=torch.float64)
    values = torch.randn(4, graph.nnz, dtype=torch.float64)
    found = torch.func.vmap(lambda value: spmm(graph.with_value(value), x))(values)
    torch.testing.assert_close(found, torch.stack([spmm(graph.with_value(value), x) for value in values]))
