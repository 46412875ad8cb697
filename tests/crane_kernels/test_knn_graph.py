"""The neighbour graph against a sort in numpy; ties, zero rows, blocks, refusals."""

import itertools
import math

import address_space
import numpy as np
import pytest
import torch

from crane_kernels import dispatch, extension, knn_graph
from crane_kernels.knn_graph import cpp, reference


@pytest.fixture(params=["reference", "cpp"])
def implementation(request):
    """Each implementation in turn."""
    reason = extension.missing() if request.param == "cpp" else None
    if reason is not None:
        pytest.skip(reason)
    return request.param


def neighbours(graph):
    bounds = graph.rowptr.tolist()
    col = graph.col.tolist()
    return [col[start:stop] for start, stop in itertools.pairwise(bounds)]


def by_sorting(features, k):
    """Neighbours by a sort of all cosines in float64; no zero rows, ties only where cosines come out equal."""
    rows = np.asarray(features, dtype=np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return [sorted(np.argsort(-(rows @ row), kind="stable")[:k].tolist()) for row in rows]


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (5, 3, 2), (60, 7, 10), (130, 1, 4), (90, 16, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_sort(n, d, k, dtype, implementation):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=dtype)
    graph = knn_graph(features, k, implementation=implementation)
    assert graph.shape == (n, n)
    assert graph.col.dtype == torch.int32
    assert graph.value.dtype == torch.float32
    assert neighbours(graph) == by_sorting(features, k)
    assert torch.equal(graph.value, torch.full((n * k,), 1 / k))


def test_ties_go_to_the_lowest_index():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.5, 0.0]])
    assert neighbours(knn_graph(features, 3)) == [[0, 2, 3], [0, 1, 4], [0, 2, 3], [0, 2, 3], [0, 1, 4], [0, 2, 3]]


@pytest.mark.parametrize("copies", [2, 9, 40])
def test_copies_of_a_row_tie_exactly_wherever_they_stand(copies, implementation):
    distinct = torch.randn(11, 129, generator=torch.Generator().manual_seed(0))
    features = distinct.repeat(copies, 1)
    expected = []
    unit = distinct.double() / distinct.double().norm(dim=1, keepdim=True)
    for i in range(len(features)):
        order = (unit @ unit[i % 11]).argsort(descending=True).tolist()
        ranked = [original + 11 * copy for original in order for copy in range(copies)]
        expected.append(sorted(ranked[:5]))
    assert neighbours(knn_graph(features, 5, implementation=implementation)) == expected


@pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-7, 1e-6, 0.1])
def test_cosines_that_float32_cannot_tell_apart(apart, monkeypatch):
    """Groups of rows in nearly one direction: exact cosines decide, where need be those of all rows."""
    if extension.missing() is not None:
        pytest.skip(extension.missing())
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    features = centres.repeat_interleave(30, 0) + apart * torch.randn(360, 40, generator=generator, dtype=torch.float64)
    asked = []
    nearest = reference.nearest
    expected = knn_graph(features, 10, implementation="reference")
    monkeypatch.setattr(reference, "nearest", lambda *a: asked.append(len(a[2])) or nearest(*a))
    found = knn_graph(features, 10, implementation="cpp")
    assert torch.equal(found.col, expected.col)
    assert asked == [360 if apart < 0.1 else 0]


@pytest.mark.parametrize("zeros", [0, 7])
def test_both_implementations_agree(zeros):
    features = torch.randn(900, 64, generator=torch.Generator().manual_seed(0))
    features[:: 900 // zeros if zeros else 901] = 0
    reason = extension.missing() or cpp.refuses(features, 10)
    assert (dispatch.choose("knn_graph", None, features, 10).implementation.name == "cpp") == (reason is None)
    expected = knn_graph(features, 10, implementation="reference")
    found = knn_graph(features, 10)
    assert torch.equal(found.rowptr, expected.rowptr)
    assert torch.equal(found.col, expected.col)


def test_wide_features_go_to_the_reference():
    assert dispatch.choose("knn_graph", None, torch.zeros(3, 513), 2).implementation.name == "reference"
    with pytest.raises(RuntimeError, match=r"features has width 513, above 512|not built"):
        knn_graph(torch.ones(3, 513), 2, implementation="cpp")


MEMORY = """
import torch
from crane_kernels import knn_graph
from crane_kernels.knn_graph import reference
reference.BLOCK_ENTRIES, reference.CHUNK_ENTRIES = 2**17, 2**20
features = torch.randn(500, 65536)
knn_graph(features[:20], 10)
def run():
    knn_graph(features, 10)
"""


@address_space.measured
def test_memory_is_that_of_the_features_in_int32_and_of_blocks():
    features, blocks, of_blas = 4 * 500 * 65536, 8 * (2**17 + 2 * 2**20), 2**26
    assert (
        address_space.taken(MEMORY) < features + blocks + of_blas < 2 * features
    )  # what a float64 copy alone would take


def test_zero_rows_have_only_themselves_and_are_nobodys_neighbours():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    graph = knn_graph(features, 4)
    assert neighbours(graph) == [[0], [1, 2, 4], [1, 2, 4], [3], [1, 2, 4]]
    torch.testing.assert_close(graph.degrees(), torch.ones(5))
    assert neighbours(knn_graph(torch.zeros(3, 2), 2)) == [[0], [1], [2]]


def test_more_neighbours_than_rows():
    graph = knn_graph(torch.eye(3), 10)
    assert neighbours(graph) == [[0, 1, 2]] * 3
    assert torch.equal(graph.value, torch.full((9,), 1 / 3))


def test_no_rows():
    assert knn_graph(torch.zeros(0, 4), 3).shape == (0, 0)


def test_blocks_change_nothing(monkeypatch, implementation):
    features = torch.randint(-2, 3, (50, 3), generator=torch.Generator().manual_seed(0)).float()
    whole = knn_graph(features, 6, implementation="reference")
    for entries, chunk in ((1, 1), (50, 100), (333, 10**6)):
        monkeypatch.setattr(reference, "BLOCK_ENTRIES", entries)
        monkeypatch.setattr(reference, "CHUNK_ENTRIES", chunk)
        parts = knn_graph(features, 6, implementation=implementation)
        assert torch.equal(parts.rowptr, whole.rowptr)
        assert torch.equal(parts.col, whole.col)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_lengths_of_rows_do_not_matter(scale):
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert neighbours(knn_graph(features * scale, 4)) == neighbours(knn_graph(features, 4))


def test_carries_no_gradient():
    assert not knn_graph(torch.randn(5, 3, requires_grad=True), 2).value.requires_grad


@pytest.mark.parametrize(
    ("features", "k", "error", "text"),
    [
        (torch.zeros(3), 2, ValueError, "features: .* expected two dimensions"),
        (np.zeros((3, 2)), 2, TypeError, "features: found ndarray"),
        (torch.zeros(3, 2).long(), 2, TypeError, "features: found dtype torch.int64"),
        (torch.zeros(3, 0), 2, ValueError, "features: .* expected at least one column"),
        (torch.tensor([[1.0], [math.nan]]), 2, ValueError, "features: found NaN or infinity in row 1"),
        (torch.tensor([[math.inf], [1.0]]), 2, ValueError, "features: found NaN or infinity in row 0"),
        (torch.zeros(3, 2), 0, ValueError, "k: found 0, expected at least 1"),
        (torch.zeros(3, 2), 1.0, TypeError, "k: found 1.0"),
        (torch.zeros(3, 2), 2**70, ValueError, rf"k: found {2**70}, expected at most 2\^63 - 1"),
    ],
)
def test_refusals(features, k, error, text):
    with pytest.raises(error, match=text):
        knn_graph(features, k)
