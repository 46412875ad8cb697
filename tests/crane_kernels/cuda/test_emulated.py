"""The CUDA kernels' own source, run on the CPU under sanitizers, against float64 arithmetic on adversarial graphs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from emulator import REDUCE, TYPES, Emulator, Result
from torch import Tensor

SEGMENT = 256  # edges of a hub that are summed apart (kSegment in spmm_cuda.cu)
EPSILON = {torch.float32: 2**-24, torch.float64: 2**-53, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SMALLEST = {torch.float32: 1e-40, torch.float64: 0.0, torch.float16: 2**-25, torch.bfloat16: 1e-40}
DTYPES = list(TYPES)


@dataclass
class Case:
    """A graph and a matrix, and what they are multiplied by."""

    degrees: list[int]
    n_cols: int = 90
    width: int = 64
    dtype: torch.dtype = torch.float32
    wide: bool = False
    seed: int = 0
    rowptr: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        self.rowptr = np.concatenate([[0], np.cumsum(self.degrees)]).astype(np.int64)
        self.n_rows, self.n_edges = len(self.degrees), int(self.rowptr[-1])
        self.row = np.repeat(np.arange(self.n_rows), self.degrees)
        self.col = generator.integers(0, self.n_cols, self.n_edges)
        self.value = torch.from_numpy(generator.standard_normal(self.n_edges)).to(self.dtype)
        self.x = torch.from_numpy(generator.standard_normal((self.n_cols, self.width))).to(self.dtype)
        self.base = torch.from_numpy(generator.standard_normal((self.n_rows, self.width))).to(self.dtype)

    @property
    def graph_arrays(self) -> dict[str, Tensor | np.ndarray]:
        col = self.col.astype(np.int64 if self.wide else np.int32)
        return {"rowptr": self.rowptr, "col": col, "value": self.value}

    @property
    def numbers(self) -> dict[str, float]:
        return {
            "type": TYPES[self.dtype],
            "wide": self.wide,
            "n_rows": self.n_rows,
            "n_edges": self.n_edges,
            "n_cols": self.n_cols,
            "n_out": self.n_rows,
            "width": self.width,
        }

    def terms(self, x_mask: np.ndarray | None = None) -> np.ndarray:
        """The product of each edge, (n_edges, width), in float64."""
        terms = self.value.double().numpy()[:, None] * self.x.double().numpy()[self.col]
        return terms if x_mask is None else terms * (x_mask[self.col] != 0)[:, None]

    def sums(self, terms: np.ndarray) -> np.ndarray:
        result = np.zeros((self.n_rows, terms.shape[1]))
        np.add.at(result, self.row, terms)
        return result

    def run(self, emulator: Emulator, arrays: dict | None = None, numbers: dict | None = None) -> Result:
        every = self.graph_arrays | {"x": self.x} | (arrays or {})
        return emulator.run("spmm", every, self.numbers | (numbers or {}))


def check(case: Case, found: Tensor, expected: np.ndarray, magnitude: np.ndarray, terms: int | None = None) -> None:
    """Compare with the bound on what rounding alone can do to sums of ``magnitude`` (sums of absolute values)."""
    longest = terms if terms is not None else max(case.degrees, default=0)
    accumulator = EPSILON[torch.float64 if case.dtype == torch.float64 else torch.float32]
    bound = 2 * (longest + 4) * accumulator * magnitude + 2 * EPSILON[case.dtype] * np.abs(expected)
    wrong = ~(np.abs(found.double().numpy() - expected) <= bound + SMALLEST[case.dtype])
    assert not wrong.any(), f"first wrong at {np.argwhere(wrong)[0]}, {wrong.sum()} in all"


GRAPHS = {
    "no edges": [0, 0, 0, 0, 0],
    "one edge": [1],
    "empty rows": [0, 3, 0, 0, 17, 1, 0, 40, 0],
    "hub of half the edges": [3, 0, 700, 5, 16, 300, 2, 0, 380, 1],
    "hubs that meet in a segment": [100, 300, 257, 0, 600, 2],
    "hubs on the segments' ends": [SEGMENT, SEGMENT, SEGMENT + 1, SEGMENT - 1, 2 * SEGMENT, 0, 2 * SEGMENT + 1],
}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sum_of_adversarial_graphs(emulator: Emulator, graph: str, dtype: torch.dtype):
    case = Case(GRAPHS[graph], width=20, dtype=dtype, wide=dtype in (torch.float32, torch.float16))
    terms = case.terms()
    found = case.run(emulator).tensor("y", dtype, case.n_rows, case.width)
    check(case, found, case.sums(terms), case.sums(np.abs(terms)))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 16, 63, 64, 65, 128, 130, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_widths(emulator: Emulator, width: int, dtype: torch.dtype):
    case = Case([5, 0, 18, 1, 2], width=width, dtype=dtype, wide=width % 2 == 0)
    terms = case.terms()
    found = case.run(emulator).tensor("y", dtype, case.n_rows, width)
    check(case, found, case.sums(terms), case.sums(np.abs(terms)))


def test_a_width_of_4096(emulator: Emulator):
    case = Case([2, 0, 1, 300], n_cols=5, width=4096, dtype=torch.bfloat16)
    terms = case.terms()
    found = case.run(emulator).tensor("y", case.dtype, case.n_rows, case.width)
    check(case, found, case.sums(terms), case.sums(np.abs(terms)))


@pytest.mark.parametrize(
    ("dtype", "skip"), [(torch.float32, 4), (torch.float16, 2), (torch.bfloat16, 4), (torch.float64, 8)]
)
def test_a_matrix_that_starts_anywhere_and_has_gaps(emulator: Emulator, dtype: torch.dtype, skip: int):
    case = Case([4, 0, 9], dtype=dtype)
    gapped = torch.full((case.n_cols, 71), float("nan"), dtype=dtype)
    gapped[:, :64] = case.x
    terms = case.terms()
    flat = gapped.flatten()[: -(71 - 64)]  # nothing after the last row's columns
    found = case.run(emulator, {"x": flat}, {"x_stride": 71, "x_skip": skip}).tensor("y", dtype, case.n_rows, 64)
    check(case, found, case.sums(terms), case.sums(np.abs(terms)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_mean_and_maximum(emulator: Emulator, dtype: torch.dtype, reduce: str):
    case = Case(GRAPHS["hub of half the edges"], n_cols=400, width=24, dtype=dtype)
    result = case.run(emulator, None, {"reduce": REDUCE[reduce], "argmax": reduce == "max"})
    found = result.tensor("y", dtype, case.n_rows, case.width)
    terms = case.terms()
    if reduce == "mean":
        count = np.maximum(np.array(case.degrees), 1)[:, None]
        check(case, found, case.sums(terms) / count, case.sums(np.abs(terms)) / count)
        return
    argmax = result.tensor("argmax", torch.int64, case.n_rows, case.width).numpy()
    for row in range(case.n_rows):
        edges = slice(case.rowptr[row], case.rowptr[row + 1])
        if edges.start == edges.stop:
            assert (found[row] == 0).all()
            assert (argmax[row] == -1).all()
            continue
        rounded = terms[edges] if dtype == torch.float64 else terms[edges].astype(np.float32)
        np.testing.assert_array_equal(argmax[row], rounded.argmax(0) + edges.start)
        np.testing.assert_array_equal(found[row].double(), torch.from_numpy(rounded.max(0)).to(dtype).double())


def test_a_maximum_meets_nan_and_infinity(emulator: Emulator):
    case = Case([3, 300, 2], n_cols=400, width=4)
    case.value = torch.ones(case.n_edges)
    case.col = np.arange(case.n_edges)
    case.x[case.col[1]] = torch.nan
    case.x[case.col[200]] = torch.inf
    case.x[case.col[-2:]] = -torch.inf
    found = case.run(emulator, None, {"reduce": REDUCE["max"]}).tensor("y", case.dtype, 3, 4)
    assert found[0].isnan().all()
    assert (found[1] == torch.inf).all()
    assert (found[2] == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(emulator: Emulator, dtype: torch.dtype):
    case = Case(GRAPHS["hub of half the edges"], width=33, dtype=dtype, wide=True)
    rows = np.array([8, 0, 8, 5, 1, 9, 5])
    arrays = {"rows": rows, "base": case.base}
    result = case.run(emulator, arrays, {"n_out": len(rows), "scale": 0.25})
    terms, base = case.terms(), case.base.double().numpy()
    expected = 0.25 * (case.sums(terms) + base)[rows]
    magnitude = 0.25 * (case.sums(np.abs(terms)) + np.abs(base))[rows]
    check(case, result.tensor("y", dtype, len(rows), case.width), expected, magnitude)


def test_rows_leave_the_other_hubs_alone(emulator: Emulator):
    case = Case([600, 3, 600, 4])
    all_rows = case.run(emulator).bytes_moved
    one_hub = case.run(emulator, {"rows": np.array([2, 3])}, {"n_out": 2}).bytes_moved
    assert one_hub < 0.55 * all_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks(emulator: Emulator, dtype: torch.dtype):
    case = Case(GRAPHS["hub of half the edges"], width=64, dtype=dtype)
    generator = np.random.default_rng(1)
    x_mask = (generator.random(case.n_cols) < 0.3).astype(np.uint8)
    base_mask = (generator.random(case.n_rows) < 0.5).astype(np.uint8)
    y_mask = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 0], dtype=np.uint8)
    terms = case.terms(x_mask)
    base = case.base.double().numpy() * base_mask[:, None]
    case.x[torch.from_numpy(x_mask) == 0] = torch.nan  # not to be touched
    case.base[torch.from_numpy(base_mask) == 0] = torch.nan
    arrays = {"x_mask": x_mask, "base": case.base, "base_mask": base_mask, "y_mask": y_mask}
    found = case.run(emulator, arrays, {"scale": 0.5}).tensor("y", dtype, case.n_rows, case.width)
    assert found[torch.from_numpy(y_mask) == 0].isnan().all()
    wanted = y_mask != 0
    check(
        case,
        found[torch.from_numpy(wanted)],
        0.5 * (case.sums(terms) + base)[wanted],
        0.5 * (case.sums(np.abs(terms)) + np.abs(base))[wanted],
    )


@pytest.mark.parametrize("reduce", REDUCE)
def test_the_order_of_threads_changes_no_bit(emulator: Emulator, reduce: str):
    case = Case(GRAPHS["hubs that meet in a segment"], width=65, dtype=torch.float32)
    numbers = {"reduce": REDUCE[reduce]}
    ascending = case.run(emulator, None, numbers).tensor("y", torch.int32, case.n_rows, case.width)
    descending = case.run(emulator, None, numbers | {"descending": 1}).tensor("y", torch.int32, case.n_rows, case.width)
    assert torch.equal(ascending, descending)


def test_a_matrix_of_more_than_two_to_the_31_elements(emulator: Emulator):
    case = Case([3, 0, 40, 2])
    n_rows = 2**25 + case.n_cols
    expected = case.run(emulator).tensor("y", case.dtype, case.n_rows, case.width)
    far = case.col + (n_rows - case.n_cols)
    arrays = {"col": far.astype(np.int32)}
    found = case.run(emulator, arrays, {"n_cols": n_rows, "x_bytes": n_rows * case.width * 4})
    assert torch.equal(found.tensor("y", case.dtype, case.n_rows, case.width), expected)


def test_a_result_of_more_than_two_to_the_31_elements(emulator: Emulator):
    case = Case([3, 0, 40, 2] * 16)
    n_rows = 2**25 + case.n_rows
    expected = case.run(emulator).tensor("y", case.dtype, case.n_rows, case.width)
    huge = {"n_rows": n_rows, "n_out": n_rows, "stored_rows": case.n_rows, "blocks_from_the_end": 6}
    lengths = {"rowptr_bytes": (n_rows + 1) * 8, "y_bytes": n_rows * case.width * 4}
    found = case.run(emulator, None, huge | lengths)
    assert torch.equal(found.tensor("y", case.dtype, case.n_rows, case.width), expected)


@pytest.mark.parametrize("graph", ["one edge", "empty rows", "hub of half the edges"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_gradient(emulator: Emulator, graph: str, dtype: torch.dtype):
    mean = graph == "empty rows"
    case = Case(GRAPHS[graph], width={"one edge": 3, "empty rows": 300}.get(graph, 36), dtype=dtype)
    g_mask = None
    if graph == "hub of half the edges":
        g_mask = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 0], dtype=np.uint8)
    kept = np.ones(case.n_rows) if g_mask is None else g_mask
    weight = kept[case.row, None] / (np.array(case.degrees)[case.row, None] if mean else 1)
    products = case.base.double().numpy()[case.row] * case.x.double().numpy()[case.col] * weight
    arrays = case.graph_arrays | {"g": case.base, "g_mask": g_mask, "x": case.x}
    result = emulator.run("sddmm", arrays, case.numbers | {"mean": mean})
    check(case, result.tensor("out", dtype, case.n_edges), products.sum(1), np.abs(products).sum(1), case.width)


@pytest.mark.parametrize("graph", GRAPHS)
def test_receptive_field(emulator: Emulator, graph: str):
    case = Case(GRAPHS[graph], n_cols=2000)
    rows = np.unique(np.array([0, case.n_rows - 1, case.n_rows // 2]))
    arrays = case.graph_arrays | {"rows": rows}
    result = emulator.run("reach", arrays, case.numbers | {"n_out": len(rows)})
    expected = np.zeros(case.n_cols, dtype=np.uint8)
    expected[case.col[np.isin(case.row, rows)]] = 1
    np.testing.assert_array_equal(result.tensor("reached", torch.uint8, case.n_cols), expected)


@pytest.mark.parametrize("some_rows", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_propagation(emulator: Emulator, layers: int, some_rows: bool):
    case = Case([2, 0, 300, 1, 4, 3, 0, 280, 2, 2], n_cols=10, width=20, dtype=torch.float64, seed=layers)
    case.value = case.value / 16
    dense = np.zeros((case.n_rows, case.n_cols))
    np.add.at(dense, (case.row, case.col), case.value.numpy())
    expected, layer = case.x.numpy().copy(), case.x.numpy()
    for _ in range(layers):
        layer = dense @ layer
        expected += layer
    expected /= layers + 1
    arrays, numbers = case.graph_arrays | {"x": case.x}, case.numbers | {"layers": layers}
    if some_rows:
        rows = np.array([8, 2, 1, 8])
        expected = expected[rows]
        arrays, numbers = arrays | {"rows": rows}, numbers | {"n_out": len(rows)}
    found = emulator.run("propagate", arrays, numbers).tensor("y", torch.float64, *expected.shape)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


ROWS = {
    "none": [],
    "repeated": [8, 2, 1, 8, 2, 2],
    "a row without edges": [1],
    "often": [2] * 70 + [7, 3] * 20,
}


def listed(rows: list[int]) -> dict[str, np.ndarray]:
    """The wanted rows in ascending order, and where in the list each stood."""
    place = np.argsort(rows, kind="stable").astype(np.int64)
    return {"sorted": np.array(rows, dtype=np.int64)[place], "place": place}


def transposed(case: Case) -> dict[str, Tensor | np.ndarray]:
    """The arrays of the transpose, and which edge each of its edges is."""
    order = np.lexsort((case.row, case.col))
    rowptr = np.searchsorted(case.col[order], np.arange(case.n_cols + 1)).astype(np.int64)
    kind = np.int64 if case.wide else np.int32
    value = case.value[torch.from_numpy(order)]
    return {"rowptr_t": rowptr, "col_t": case.row[order].astype(kind), "value_t": value, "order": order.astype(kind)}


def summed(case: Case, rows: list[int], grad: np.ndarray) -> np.ndarray:
    """What arrives at each row of A: (n_rows, width), in float64."""
    result = np.zeros((case.n_rows, case.width))
    np.add.at(result, rows, grad)
    return result


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_transpose_of_some_rows(emulator: Emulator, dtype: torch.dtype, rows: str):
    case = Case([2, 0, 300, 1, 4, 3, 0, 280, 2, 2], n_cols=40, width=20, dtype=dtype, wide=rows == "often")
    wanted = ROWS[rows]
    grad = torch.from_numpy(np.random.default_rng(5).standard_normal((len(wanted), case.width))).to(dtype)
    arrays = case.graph_arrays | transposed(case) | listed(wanted) | {"grad": grad}
    result = emulator.run("spmm_t", arrays, case.numbers | {"n_places": len(wanted)})
    # Sums of repeated rows are rounded to the dtype once more.
    arrived, size = (summed(case, wanted, g) for g in (grad.double().numpy(), np.abs(grad.double().numpy())))
    value = case.value.double().numpy()
    expected, magnitude = np.zeros((case.n_cols, case.width)), np.zeros((case.n_cols, case.width))
    np.add.at(expected, case.col, value[:, None] * arrived[case.row])
    np.add.at(magnitude, case.col, np.abs(value)[:, None] * size[case.row])
    found = result.tensor("y", dtype, case.n_cols, case.width)
    check(case, found, expected, magnitude * (1 + EPSILON[dtype] / 2**-24 * (dtype != torch.float64)), 400)
    untouched = ~np.isin(np.arange(case.n_cols), case.col[np.isin(case.row, wanted)])
    assert not found[torch.from_numpy(untouched)].any()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_the_transpose_of_propagation(emulator: Emulator, layers: int, rows: str):
    case = Case([2, 0, 300, 1, 4, 3, 0, 280, 2, 2], n_cols=10, width=20, dtype=torch.float64, seed=layers)
    case.value = case.value / 16
    dense = np.zeros((case.n_rows, case.n_cols))
    np.add.at(dense, (case.row, case.col), case.value.numpy())
    wanted = ROWS[rows]
    grad = np.random.default_rng(6).standard_normal((len(wanted), case.width))
    layer = summed(case, wanted, grad)
    expected = layer.copy()
    for _ in range(layers):
        layer = dense.T @ layer
        expected += layer
    expected /= layers + 1
    arrays = case.graph_arrays | transposed(case) | listed(wanted) | {"grad": grad}
    numbers = case.numbers | {"n_places": len(wanted), "layers": layers}
    found = emulator.run("propagate_t", arrays, numbers).tensor("y", torch.float64, *expected.shape)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_the_transpose_of_propagation_costs_what_the_rows_reach(emulator: Emulator):
    chain = Case([1] * 400, n_cols=400)  # row i has the one edge to i + 1
    chain.col = np.minimum(np.arange(400) + 1, 399)
    arrays = chain.graph_arrays | transposed(chain)

    def moved(rows: list[int]) -> int:
        grad = torch.ones(len(rows), chain.width)
        numbers = chain.numbers | {"n_places": len(rows), "layers": 3}
        return emulator.run("propagate_t", arrays | listed(rows) | {"grad": grad}, numbers).bytes_moved

    assert moved([7]) < 0.1 * moved(list(range(400)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_in_another_order(emulator: Emulator, dtype: torch.dtype):
    case = Case([2, 0, 300, 1, 4], dtype=dtype, wide=dtype == torch.float32)
    arrays = case.graph_arrays | {"order": transposed(case)["order"]}
    found = emulator.run("reorder", arrays, case.numbers).tensor("out", dtype, case.n_edges)
    assert torch.equal(found, transposed(case)["value_t"])


@pytest.mark.parametrize(("operation", "row"), [("spmm", 5), ("spmm", -1), ("reach", 7), ("spmm_t", 5)])
def test_a_row_that_is_not_there_ends_the_kernel(emulator: Emulator, operation: str, row: int):
    case = Case([2, 0, 3, 1, 4])
    arrays = case.graph_arrays | transposed(case) | listed([row]) | {"rows": np.array([row]), "x": case.x}
    numbers = case.numbers | {"n_out": 1, "n_places": 1}
    _, done = emulator.attempt(operation, arrays | {"grad": torch.ones(1, case.width)}, numbers)
    assert done.returncode == 3
    assert "a row is out of range" in done.stderr


def test_propagation_to_some_rows_costs_what_they_reach(emulator: Emulator):
    chain = Case([1] * 400, n_cols=400)  # row i has the one edge to i + 1
    chain.col = np.minimum(np.arange(400) + 1, 399)
    arrays, numbers = chain.graph_arrays | {"x": chain.x}, chain.numbers | {"layers": 3}
    whole = emulator.run("propagate", arrays, numbers).bytes_moved
    one = emulator.run("propagate", arrays | {"rows": np.array([7])}, numbers | {"n_out": 1})
    assert one.bytes_moved < 0.1 * whole


def power_law(n_rows: int, n_edges: int) -> list[int]:
    """Degrees like those of users and items: many small, a few hubs."""
    weights = 1.0 / (np.arange(n_rows) + 2.0)
    degrees = np.random.default_rng(3).permutation(np.ceil(n_edges * weights / weights.sum()).astype(int))
    return degrees.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_of_sparse_times_dense(emulator: Emulator, dtype: torch.dtype, record_property):
    case = Case(power_law(200, 2900), n_cols=400, dtype=dtype)
    assert max(case.degrees) > SEGMENT
    moved = case.run(emulator).bytes_moved
    size = dtype.itemsize
    fewest = (case.n_rows + 1) * 8 + case.n_edges * (4 + size + 64 * size) + case.n_rows * 64 * size
    record_property("bytes_ratio", moved / fewest)
    assert fewest <= moved <= 1.15 * fewest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_of_the_value_gradient(emulator: Emulator, dtype: torch.dtype, record_property):
    case = Case(power_law(150, 1300), n_cols=400, dtype=dtype)
    result = emulator.run("sddmm", case.graph_arrays | {"g": case.base, "x": case.x}, case.numbers)
    size = dtype.itemsize
    fewest = (case.n_rows + 1) * 8 + case.n_edges * (4 + 64 * size + size) + case.n_rows * 64 * size
    record_property("bytes_ratio", result.bytes_moved / fewest)
    assert fewest <= result.bytes_moved <= 1.15 * fewest
