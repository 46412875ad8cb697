"""The neighbour graph against a sort in numpy; ties, zero rows, blocks, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch

from crane_kernels import knn_graph
from crane_kernels.knn_graph import reference


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
def test_equals_a_sort(n, d, k, dtype):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=dtype)
    graph = knn_graph(features, k)
    assert graph.shape == (n, n)
    assert graph.col.dtype == torch.int32
    assert graph.value.dtype == torch.float32
    assert neighbours(graph) == by_sorting(features, k)
    assert torch.equal(graph.value, torch.full((n * k,), 1 / k))


def test_ties_go_to_the_lowest_index():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.5, 0.0]])
    assert neighbours(knn_graph(features, 3)) == [[0, 2, 3], [0, 1, 4], [0, 2, 3], [0, 2, 3], [0, 1, 4], [0, 2, 3]]


@pytest.mark.parametrize("copies", [2, 9, 40])
def test_copies_of_a_row_tie_exactly_wherever_they_stand(copies):
    distinct = torch.randn(11, 129, generator=torch.Generator().manual_seed(0))
    features = distinct.repeat(copies, 1)
    expected = []
    unit = distinct.double() / distinct.double().norm(dim=1, keepdim=True)
    for i in range(len(features)):
        order = (unit @ unit[i % 11]).argsort(descending=True).tolist()
        ranked = [original + 11 * copy for original in order for copy in range(copies)]
        expected.append(sorted(ranked[:5]))
    assert neighbours(knn_graph(features, 5)) == expected


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


def test_blocks_change_nothing(monkeypatch):
    features = torch.randint(-2, 3, (50, 3), generator=torch.Generator().manual_seed(0)).float()
    whole = knn_graph(features, 6)
    for entries in (1, 50, 333):
        monkeypatch.setattr(reference, "BLOCK_ENTRIES", entries)
        parts = knn_graph(features, 6)
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
    ],
)
def test_refusals(features, k, error, text):
    with pytest.raises(error, match=text):
        knn_graph(features, k)
