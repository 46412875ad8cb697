"""``Graph``: construction from every format, refusals, transposition, normalisation."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from graphs import GRAPHS, random_graph

from crane_kernels import Graph, spmm

DENSE = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
EDGES = {"row": [1, 0, 1], "col": [2, 1, 0], "value": [3.0, 2.0, 1.0], "shape": (2, 3)}


def test_from_edges_sorts() -> None:
    graph = Graph.from_edges(**EDGES)
    assert graph.rowptr.tolist() == [0, 1, 3]
    assert graph.col.tolist() == [1, 0, 2]
    assert graph.value.tolist() == [2.0, 1.0, 3.0]
    assert (graph.rowptr.dtype, graph.col.dtype, graph.value.dtype) == (torch.int64, torch.int32, torch.float32)
    assert (graph.shape, graph.n_rows, graph.n_cols, graph.nnz) == ((2, 3), 2, 3, 3)
    assert graph.row().tolist() == [0, 1, 1]
    assert torch.equal(graph.to_dense(), DENSE)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda x: np.array(x, dtype=np.int32)])
def test_from_edges_takes_arrays(convert: Any) -> None:
    graph = Graph.from_edges(convert([0, 1]), convert([1, 0]), shape=(2, 2))
    assert graph.to_dense().tolist() == [[0, 1], [1, 0]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("writable", [False, True])
def test_arrays_are_copied(writable: bool) -> None:
    """In silence, whether the caller's own can be written to or not."""
    rowptr, col, value = np.array([0, 1, 2]), np.array([1, 0]), np.array([2.0, 4.0])
    given = [array[:] for array in (rowptr, col, value)]
    for array in given:
        array.flags.writeable = writable
    graphs = Graph(*given, (2, 2)), Graph.from_edges([0, 1], *given[1:]), Graph.from_edges([0, 1], [1, 0]).with_value
    made = [*graphs[:2], graphs[2](torch.from_numpy(value))]
    for array in (rowptr, col, value):
        array[:] = 0
    assert [graph.to_dense().tolist() for graph in made] == [[[0, 2], [4, 0]]] * 3


def test_arrays_of_foreign_byte_order() -> None:
    graph = Graph.from_edges(np.array([0, 1], dtype=">i8"), np.array([1, 0], dtype=">i4"), np.array([2, 3], ">f4"))
    assert graph.to_dense().tolist() == [[0, 2], [3, 0]]


def test_from_edges_sums_duplicates() -> None:
    graph = Graph.from_edges([0, 1, 0, 0], [1, 0, 1, 0], [1.0, 2.0, 4.0, 8.0], (2, 2))
    assert graph.to_dense().tolist() == [[8, 5], [2, 0]]
    assert graph.nnz == 3


def test_from_edges_keeps_duplicates_as_asked() -> None:
    graph = Graph.from_edges([0, 1, 0, 0], [1, 0, 1, 0], [1.0, 2.0, 4.0, 8.0], (2, 2), duplicates="keep")
    assert graph.col.tolist() == [0, 1, 1, 0]
    assert graph.value.tolist() == [8.0, 1.0, 4.0, 2.0]
    assert graph.to_dense().tolist() == [[8, 5], [2, 0]]
    assert not graph.distinct
    assert graph.coalesce()._equals(Graph.from_edges([0, 0, 1], [0, 1, 0], [8.0, 5.0, 2.0]))
    assert Graph(graph.rowptr, graph.col, graph.value, (2, 2))._equals(graph)
    assert graph.coalesce().coalesce().distinct


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(500, 900), (3, 2**33), (70_000, 2)])
@pytest.mark.usefixtures("compiled")
def test_from_edges_sorts_many(shape: tuple[int, int], threads: int) -> None:
    """More than one thread's share of edges, some of one place, and a row that has most of them."""
    generator = np.random.default_rng(0)
    row, col = (generator.integers(0, n, 200_000) for n in shape)
    row[generator.random(len(row)) < 0.4] = shape[0] // 2
    order = np.lexsort((np.arange(len(row)), col, row))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        graph = Graph.from_edges(row, col, np.arange(len(row), dtype=np.float64), shape, duplicates="keep")
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(graph.value.numpy(), order)
    assert np.array_equal(graph.row().numpy(), row[order])
    assert np.array_equal(graph.col.numpy(), col[order])
    assert graph.distinct == (len(np.unique(np.stack([row, col]), axis=1).T) == len(row))


@pytest.mark.usefixtures("compiled")
def test_sort_edges_refuses_rows_out_of_range() -> None:
    row, col = torch.tensor([0, 3, 1]), torch.zeros(3, dtype=torch.int64)
    torch.library.opcheck(torch.ops.crane_kernels.sort_edges, (row, col, 4, 1))
    for wrong in (torch.tensor([0, 4, 1]), torch.tensor([0, -1, 1])):
        with pytest.raises(RuntimeError, match="row: expected rows of the graph"):
            torch.ops.crane_kernels.sort_edges(wrong, col, 4, 1)


def test_from_edge_index_takes_sources_and_targets() -> None:
    edges = torch.tensor([[0, 0, 2], [1, 2, 1]])
    graph = Graph.from_edge_index(edges, torch.tensor([1.0, 2.0, 3.0]))
    assert graph.to_dense().tolist() == [[0, 0, 0], [1, 0, 3], [2, 0, 0]]
    assert Graph.from_edge_index(edges, num_nodes=5).shape == (5, 5)
    twice = torch.cat([edges, edges], 1)
    assert (Graph.from_edge_index(twice).nnz, Graph.from_edge_index(twice, duplicates="keep").nnz) == (3, 6)
    with pytest.raises(ValueError, match=r"edge_index: found shape \(3, 2\), expected \(2, n_edges\)"):
        Graph.from_edge_index(edges.T)


def test_keeps_copies_of_what_the_caller_can_change() -> None:
    row, col = torch.tensor([0, 1]), torch.tensor([1, 0])
    arrays = {"value": torch.tensor([1.0, 2.0]), "array": np.array([1.0, 2.0]), "rowptr": torch.tensor([0, 1, 2])}
    made = [
        Graph.from_edges(row, col, arrays["value"]),
        Graph.from_edges(row, col, arrays["array"]),
        Graph(arrays["rowptr"], col, arrays["value"], (2, 2)),
        Graph.from_edges(row, col).with_value(arrays["value"]),
        Graph.from_torch(torch.sparse_coo_tensor(torch.stack([row, col]), arrays["value"], is_coalesced=True)),
    ]
    transposes = [graph.transpose() for graph in made]
    for array in arrays.values():
        array[:] = 0
    for graph, transpose in zip(made, transposes, strict=True):
        assert graph.to_dense().tolist() == [[0, 1], [2, 0]]
        assert transpose.to_dense().tolist() == [[0, 2], [1, 0]]


@pytest.mark.parametrize("layout", ["uncoalesced", "coo", "csr", "csc"])
def test_gradients_reach_a_torch_sparse_tensor(layout: str) -> None:
    value = torch.tensor([3.0, 1.5, 1.0, 0.5], requires_grad=True)
    coo = torch.sparse_coo_tensor(torch.tensor([[1, 0, 1, 0], [2, 1, 0, 1]]), value, (2, 3))
    convert = {"coo": "coalesce", "csr": "to_sparse_csr", "csc": "to_sparse_csc"}
    sparse = coo if layout == "uncoalesced" else getattr(coo, convert[layout])()
    graph = Graph.from_torch(sparse)
    assert graph.value.requires_grad
    weight = torch.tensor([[0.0, 10.0, 0.0], [20.0, 0.0, 30.0]])
    (grad,) = torch.autograd.grad((graph.to_dense() * weight).sum(), value)
    assert grad.tolist() == [30, 10, 20, 10]


def test_is_freed_with_its_transpose() -> None:
    gc.collect()
    gc.disable()
    try:
        graph = random_graph(5, 4, 9)
        transpose = graph.transpose()
        assert transpose.transpose() is graph
        gone = weakref.ref(graph), weakref.ref(transpose)
        again = graph.to_dense()
        del graph
        assert gone[0]() is None
        assert torch.equal(transpose.transpose().to_dense(), again)
        del transpose
        assert gone[1]() is None
    finally:
        gc.enable()


def test_graphs_of_the_same_edges_share_what_is_derived() -> None:
    graph = random_graph(5, 4, 9)
    graph.transpose()
    assert graph.with_value(graph.value * 2)._structure is graph._structure
    assert graph.to(torch.float32)._structure is graph._structure


def test_from_edges_finds_the_shape() -> None:
    assert Graph.from_edges([0, 4], [6, 1]).shape == (5, 7)
    assert Graph.from_edges([], []).shape == (0, 0)


def test_huge_shape() -> None:
    n = 2**40
    graph = Graph.from_edges([2, 0, 2], [n - 1, 5, 7], shape=(3, n))
    assert graph.col.tolist() == [5, 7, n - 1]
    assert graph.col.dtype == torch.int64


@pytest.mark.parametrize("layout", ["uncoalesced", "coo", "csr", "csc"])
def test_from_torch(layout: str) -> None:
    coo = torch.sparse_coo_tensor(
        torch.tensor([[1, 0, 1, 0], [2, 1, 0, 1]]), torch.tensor([3.0, 1.5, 1.0, 0.5]), (2, 3)
    )
    convert = {"coo": "coalesce", "csr": "to_sparse_csr", "csc": "to_sparse_csc"}
    sparse = coo if layout == "uncoalesced" else getattr(coo, convert[layout])()
    assert torch.equal(Graph.from_torch(sparse).to_dense(), DENSE)


@pytest.mark.parametrize("form", ["coo", "csr", "csc", "lil", "dok"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_from_scipy(form: str, kind: str) -> None:
    dense = scipy.sparse.coo_matrix(DENSE.numpy()) if kind == "matrix" else scipy.sparse.coo_array(DENSE.numpy())
    assert torch.equal(Graph.from_scipy(dense.asformat(form)).to_dense(), DENSE)


def test_round_trip_through_torch() -> None:
    for graph in GRAPHS.values():
        assert Graph.from_torch(graph.to_torch())._equals(graph)


@pytest.mark.parametrize("name", GRAPHS)
def test_transpose(name: str) -> None:
    graph = GRAPHS[name]
    transpose = graph._transposed()
    checked = Graph(transpose.rowptr, transpose.col, transpose.value, transpose.shape)
    expected = Graph.from_edges(graph.col.long(), graph.row(), graph.value, graph.shape[::-1])
    assert checked._equals(expected)
    assert graph._transposed() is transpose
    assert transpose._transposed() is graph


def test_symmetric_is_found_or_given() -> None:
    assert Graph.from_edges([0, 1], [1, 0], [2.0, 2.0], (2, 2)).symmetric
    assert not Graph.from_edges([0, 1], [1, 0], [2.0, 3.0], (2, 2)).symmetric
    assert not Graph.from_edges([0], [1], shape=(2, 3)).symmetric
    given = Graph.from_edges([0, 1], [1, 0], [2.0, 2.0], (2, 2), symmetric=True)
    assert given.transpose() is given
    with pytest.raises(ValueError, match=r"symmetric: found True for shape \(1, 2\)"):
        Graph.from_edges([0], [1], shape=(1, 2), symmetric=True)


@pytest.mark.parametrize("first", ["graph", "transpose", "cast"])
def test_values_changed_in_place_are_noticed(first: str) -> None:
    graph = random_graph(5, 5, 9)
    transpose, cast = graph.transpose(), graph.to(torch.float32)
    assert not graph.symmetric
    {"graph": graph, "transpose": transpose, "cast": cast}[first].value.mul_(3)
    for one in (graph, transpose, cast):
        assert torch.equal(one.transpose().to_dense(), one.to_dense().T)
        assert one.transpose() is one.transpose()
        assert torch.equal(one.to(torch.float32).to_dense(), one.to_dense().float())
    assert (graph.transpose() is transpose, graph.to(torch.float32) is cast) == (first == "cast", first == "transpose")


def test_gradients_and_symmetry_follow_values_changed_in_place() -> None:
    graph = Graph.from_edges([0, 1], [1, 0], [2.0, 2.0], (2, 2))
    x = torch.ones(2, 1, requires_grad=True)
    assert graph.symmetric
    for value in (2.0, 6.0):
        graph.value[0] = value
        (grad,) = torch.autograd.grad(spmm(graph, x).sum(), x)
        assert grad.flatten().tolist() == [2, value]
    assert not graph.symmetric


def test_values_of_inference_mode() -> None:
    with torch.inference_mode():
        graph = random_graph(5, 4, 9)
        assert torch.equal(graph.transpose().to(torch.float32).to_dense(), graph.to_dense().T.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_inference_mode_derived_is_built_again_for_training(dtype: torch.dtype) -> None:
    graph = random_graph(5, 4, 9)
    with torch.inference_mode():
        spmm(graph, torch.ones(4, 2, dtype=dtype))
        graph.to(dtype).transpose()
    x = torch.ones(4, 2, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(spmm(graph, x).sum(), x)
    torch.testing.assert_close(grad, graph.to_dense().sum(0)[:, None].expand(4, 2).to(dtype))
    assert graph.to(dtype).transpose() is graph.to(dtype).transpose()


def test_nothing_is_kept_that_belongs_to_a_transform() -> None:
    graph = random_graph(5, 4, 9)
    torch.func.grad(lambda x: (graph.transpose().to(torch.float32).to_dense() @ x).sum())(torch.ones(5, 2))
    assert pickle.loads(pickle.dumps(graph.transpose())).shape == (4, 5)


def test_tensors_stay_where_they_are_whatever_the_default_device() -> None:
    with torch.device("meta"):
        graph = Graph.from_edges(torch.tensor([0], device="cpu"), torch.tensor([1], device="cpu"))
    assert graph.device.type == "cpu"


def test_bipartite() -> None:
    graph = Graph.from_edges(**EDGES)
    dense = torch.zeros(5, 5)
    dense[:2, 2:], dense[2:, :2] = DENSE, DENSE.T
    both = graph.bipartite()
    assert torch.equal(both.to_dense(), dense)
    assert Graph(both.rowptr, both.col, both.value, both.shape).symmetric


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("row", [[0, 1, 0], [0.25, 0, 0.75], [0, 0, 0]]),
        ("column", [[0, 1, 0], [1, 0, 1], [0, 0, 0]]),
        ("symmetric", [[0, 1, 0], [0.5, 0, 3 / 12**0.5], [0, 0, 0]]),
    ],
)
def test_normalize(how: Any, expected: list[list[float]]) -> None:
    graph = Graph.from_edges(EDGES["row"], EDGES["col"], EDGES["value"], (3, 3))
    torch.testing.assert_close(graph.normalize(how).to_dense(), torch.tensor(expected, dtype=torch.float32))


def test_symmetric_normalisation_stays_exactly_symmetric() -> None:
    graph = random_graph(50, 70, 900)
    normalised = graph.with_value(graph.value.abs()).bipartite().normalize("symmetric")
    assert Graph(normalised.rowptr, normalised.col, normalised.value, normalised.shape).symmetric


def test_degrees() -> None:
    assert Graph.from_edges(**EDGES).degrees().tolist() == [2, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_of_many_edges(dtype: torch.dtype) -> None:
    n = 60_000
    row, col, value = torch.zeros(n, dtype=torch.long), torch.arange(n), torch.ones(n, dtype=dtype)
    graph = Graph.from_edges(row, col, value, (1, n))
    exact = torch.tensor([float(n)]).to(dtype)
    assert torch.equal(graph.degrees(), exact)
    assert torch.equal(Graph.from_edges(row, row, value).value, exact)
    assert torch.equal(graph.normalize("row").value, torch.full((n,), 1 / n).to(dtype))
    assert torch.equal(graph.normalize("symmetric").value, torch.full((n,), n**-0.5).to(dtype))
    assert torch.equal(graph.normalize("column").value, value)


def test_to() -> None:
    graph = Graph.from_edges(**EDGES)
    assert graph.to(torch.float64).value.dtype == torch.float64
    assert graph.to(torch.float64) is graph.to(torch.float64)
    assert graph.to("cpu") is graph
    assert graph.to("meta").device.type == "meta"
    with pytest.raises(TypeError, match=r"target: found dtype torch.int64, expected a floating-point dtype"):
        graph.to(torch.int64)


def test_pickles() -> None:
    graph = random_graph(5, 4, 9)
    graph.transpose()
    copy = pickle.loads(pickle.dumps(graph))
    assert copy._equals(graph)
    assert copy._transpose is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"row": [1, 0, 2]}, ValueError, "row: found index 2 at edge 2, expected 0 to 1"),
        ({"col": [2, -1, 0]}, ValueError, "col: found index -1 at edge 1, expected 0 to 2"),
        ({"col": [2, 1]}, ValueError, "col: found 2 indices, expected 3"),
        ({"row": [1.0, 0.0, 1.0]}, TypeError, "row: found dtype torch.float32, expected integers"),
        ({"row": [True, False, True]}, TypeError, "row: found dtype torch.bool, expected integers"),
        ({"row": [[1, 0, 1]]}, ValueError, r"row: found shape \(1, 3\), expected one dimension"),
        ({"value": [1.0, float("nan"), 1.0]}, ValueError, "value: found NaN at edge 1"),
        ({"value": [1.0, 1.0, float("-inf")]}, ValueError, "value: found -inf at edge 2, expected finite numbers"),
        ({"duplicates": "drop"}, ValueError, "duplicates: found 'drop', expected 'sum' or 'keep'"),
        ({"value": [1.0]}, ValueError, r"value: found shape \(1,\), expected \(3,\)"),
        ({"row": [1, 0, 2**70]}, ValueError, f"row: found {2**70}, expected numbers of 64 bits"),
        ({"value": [1, 1, -(2**70)]}, ValueError, f"value: found {-(2**70)}, expected numbers of 64 bits"),
        ({"row": ["a", "b", "c"]}, TypeError, r"row: found list, expected an array of numbers \(too many dimensions"),
        ({"col": np.array([0, None])}, TypeError, "col: found ndarray, expected an array of numbers"),
        ({"shape": (2**70, 3)}, ValueError, r"shape: found .* below 2\^48"),
        ({"value": [1j, 1j, 1j]}, TypeError, "value: found dtype torch.complex64, expected real numbers"),
        ({"shape": (2,)}, ValueError, r"shape: found \(2,\), expected two sizes"),
        ({"shape": (2, -1)}, ValueError, r"shape: found \(2, -1\), expected two sizes"),
        ({"shape": (0, 3)}, ValueError, "row: found index 1 at edge 0, expected none, as the shape has none"),
        ({"shape": (2.9, 3)}, TypeError, r"shape: found \(2\.9, 3\), expected two integers"),
        ({"shape": (2**48, 3)}, ValueError, r"shape: found .* below 2\^48"),
        ({"row": [1, 0, 2**62], "shape": None}, ValueError, r"shape: found .* below 2\^48"),
        ({"row": [-1, -1, -1], "shape": None}, ValueError, "row: found index -1 at edge 0, expected at least 0"),
        ({"symmetric": "no"}, TypeError, "symmetric: found 'no', expected True, False or None"),
        (
            {"row": [0, 0, 0], "col": [0, 0, 1], "value": torch.tensor([6e4, 6e4, 1]).half()},
            ValueError,
            "value, summed over duplicates: found inf at edge 0, expected finite numbers",
        ),
    ],
)
def test_from_edges_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Graph.from_edges(**(EDGES | change))


@pytest.mark.parametrize(
    ("rowptr", "col", "message"),
    [
        ([0, 1], [0], "rowptr: found 2 entries, expected 3"),
        ([0, 2, 1], [0], "rowptr: found it falling after row 1"),
        ([0, 1, 2], [0], "rowptr: found it from 0 to 2, expected from 0 to 1"),
        ([1, 1, 1], [0], "rowptr: found it from 1 to 1, expected from 0 to 1"),
        ([0, 2, 2], [1, 0], "columns of row 0 that do not ascend"),
        ([0, 0, 1], [3], "col: found index 3 at edge 0, expected 0 to 2"),
    ],
)
def test_constructor_refuses(rowptr: list[int], col: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(rowptr, col, None, (2, 3))


def test_huge_numbers_of_edge_index_are_refused() -> None:
    with pytest.raises(ValueError, match=f"^edge_index: found {2**70}, expected numbers of 64 bits$"):
        Graph.from_edge_index([[0, 1], [1, 2**70]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=rf"^shape: found \({2**70}, {2**70}\), expected two sizes"):
        Graph.from_edge_index([[0, 1], [1, 0]], num_nodes=2**70)  # type: ignore[list-item]


def test_arrays_of_two_devices_are_refused() -> None:
    rowptr, col = torch.tensor([0, 1]), torch.tensor([0])
    with pytest.raises(ValueError, match=r"^col: found on device meta, expected cpu, where rowptr is$"):
        Graph(rowptr, col.to("meta"), None, (1, 1))
    with pytest.raises(ValueError, match=r"^value: found on device meta, expected cpu, where col is$"):
        Graph(rowptr, col, torch.ones(1, device="meta"), (1, 1))


def test_what_does_not_stay_finite_is_refused() -> None:
    graph = Graph.from_edges([0, 1], [0, 1], [1.0, 1e10])
    with pytest.raises(ValueError, match=r"value as torch\.float16: found inf at edge 1, expected finite numbers"):
        graph.to(torch.float16)
    tiny = Graph.from_edges([0], [0], [1e-40])
    with pytest.raises(ValueError, match=r"^normalize, of values too small or large .*: found inf at edge 0"):
        tiny.normalize("row")
    with pytest.raises(TypeError, match="value: found list, expected a torch Tensor"):
        graph.with_value([1.0, 2.0])  # type: ignore[arg-type]


def test_foreign_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"sparse: found layout torch\.strided"):
        Graph.from_torch(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"sparse: found shape \(1, 1, 1\)"):
        Graph.from_torch(torch.ones(1, 1, 1).to_sparse())
    with pytest.raises(ValueError, match="sparse: found 1 dense dimension, expected two sparse ones"):
        Graph.from_torch(torch.ones(2, 2).to_sparse(1))
    with pytest.raises(TypeError, match="matrix: found ndarray, expected a scipy sparse matrix"):
        Graph.from_scipy(np.ones((2, 2)))
    with pytest.raises(ValueError, match="normalize: found negative values"):
        Graph.from_edges([0], [0], [-1.0], (1, 1)).normalize("row")
    with pytest.raises(ValueError, match="how: found 'rows'"):
        Graph.from_edges([0], [0]).normalize("rows")  # type: ignore[arg-type]
