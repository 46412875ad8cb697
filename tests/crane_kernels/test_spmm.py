"""``spmm``: the compiled kernel against the float64 reference, its gradient, and its life under torch's tools."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from graphs import GRAPHS, WIDTHS, random_graph
from torch import Tensor

from crane_kernels import Graph, extension, spmm

DTYPES = (torch.float32, torch.float64)


def bound(graph: Graph, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Error allowed for each element: 16 units in the last place of the sum of magnitudes."""
    magnitudes = spmm(graph.with_value(graph.value.abs()), x.abs(), implementation="reference")
    return 16 * torch.finfo(dtype).eps * magnitudes + torch.finfo(dtype).tiny


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
    assert ((y - y64).abs() <= bound(exact, x64.detach(), dtype)).all()
    assert ((grad_x - grad_x64).abs() <= bound(exact.transpose(), grad64, dtype)).all()


@pytest.mark.skipif("CRANE_ISA" in os.environ, reason="CRANE_ISA already names one instruction set")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.usefixtures("compiled")
def test_every_instruction_set(isa: str) -> None:
    if isa not in extension.instruction_sets():
        pytest.skip(f"this build and processor do not run {isa}")
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "matches or bits"]
    done = subprocess.run(command, env=os.environ | {"CRANE_ISA": isa}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["hub", "square", "nothing but hubs", "mostly empty rows"])
@pytest.mark.usefixtures("compiled")
def test_same_bits_for_every_number_of_threads(name: str) -> None:
    graph = GRAPHS[name]
    x = torch.randn(graph.n_cols, 65)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(spmm(graph, x, implementation="cpp"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.usefixtures("compiled")
def test_same_bits_for_int64_columns() -> None:
    graph = GRAPHS["hub"]
    x = torch.randn(graph.n_cols, 9, dtype=torch.float64)
    wide = torch.ops.crane_kernels.spmm(graph.rowptr, graph.col.long(), graph.value, None, None, None, x)
    assert torch.equal(wide, spmm(graph, x, implementation="cpp"))


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_strided_input(implementation: str) -> None:
    graph = random_graph(40, 30, 200).to(torch.float32)
    wide = torch.randn(30, 128)
    expected = graph.to_dense()
    for x in (wide[:, 3:67], wide[:, ::2], torch.randn(64, 30).t(), torch.randn(64).expand(30, 64), wide[:, :1]):
        torch.testing.assert_close(spmm(graph, x, implementation=implementation), expected @ x)


@pytest.mark.parametrize("implementation", ["cpp", "reference"])
@pytest.mark.usefixtures("compiled")
def test_gradcheck(implementation: str) -> None:
    graph = random_graph(6, 5, 12)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: spmm(graph, x, implementation=implementation), (x,))
    assert torch.autograd.gradgradcheck(lambda x: spmm(graph, x, implementation=implementation), (x,))


def test_reference_differentiates_values() -> None:
    graph = random_graph(6, 5, 12)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    value = graph.value.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, x: spmm(graph.with_value(v), x), (value, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.usefixtures("compiled")
def test_opcheck(dtype: torch.dtype, needs_gradient: bool) -> None:
    graph = random_graph(6, 5, 12).to(dtype)
    transpose = graph.transpose()
    x = torch.randn(5, 3, dtype=dtype, requires_grad=needs_gradient)
    back = (transpose.rowptr, transpose.col, transpose.value) if needs_gradient else (None, None, None)
    torch.library.opcheck(torch.ops.crane_kernels.spmm, (graph.rowptr, graph.col, graph.value, *back, x))


@pytest.mark.parametrize("built_before", [False, True], ids=["transpose not built", "transpose built"])
@pytest.mark.usefixtures("compiled")
def test_compiles_without_graph_break(built_before: bool) -> None:
    graph = random_graph(6, 5, 12).to(torch.float32)
    if built_before:
        graph.transpose()
    x = torch.randn(5, 3, requires_grad=True)
    compiled = torch.compile(lambda x: spmm(graph, x).square().sum(), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        (grad,) = torch.autograd.grad(compiled(x), x)
        dense = graph.to_dense()
        torch.testing.assert_close(grad, 2 * dense.T @ (dense @ x.detach()))


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


@pytest.mark.usefixtures("compiled")
def test_what_the_compiled_kernel_refuses() -> None:
    graph = random_graph(6, 5, 12)
    with pytest.raises(RuntimeError, match=r"'cpp' was requested but x has dtype torch.bfloat16"):
        spmm(graph, torch.randn(5, 3, dtype=torch.bfloat16), implementation="cpp")
    learned = graph.with_value(graph.value.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="values require gradients"):
        spmm(learned, torch.randn(5, 3), implementation="cpp")


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


def test_refuses_what_is_no_graph() -> None:
    with pytest.raises(TypeError, match="graph: found Tensor, expected a crane_kernels Graph"):
        spmm(torch.eye(3).to_sparse(), torch.ones(3, 2))


def test_forward_mode_derivative_is_the_product_with_the_tangent() -> None:
    graph = Graph.from_edges([0, 0, 2], [1, 2, 0], [1.0, 2.0, 3.0], shape=(3, 3))
    x, tangent = torch.randn(3, 4), torch.randn(3, 4)
    _, found = torch.func.jvp(lambda q: spmm(graph, q), (x,), (tangent,))
    torch.testing.assert_close(found, spmm(graph, tangent))
