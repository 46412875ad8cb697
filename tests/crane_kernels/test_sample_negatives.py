"""Negative sampling: never a positive, uniform over the rest, repeatable."""

import numpy as np
import pytest
import torch

from crane_kernels import Graph, extension, sample_negatives, use_implementation


@pytest.fixture(params=["reference", "cpp"], autouse=True)
def _implementation(request):
    """Run every test on both implementations."""
    reason = extension.missing() if request.param == "cpp" else None
    if reason is not None:
        pytest.skip(reason)
    with use_implementation(sample_negatives=request.param):
        yield


def graph_of(positives, n_items):
    row = [user for user, items in enumerate(positives) for _ in items]
    return Graph.from_edges(row, [i for items in positives for i in items], shape=(len(positives), n_items))


def random_graph(n_users, n_items, density):
    mask = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(0)) < density
    mask[:, -1] = False
    row, col = mask.nonzero().T
    return Graph.from_edges(row, col, shape=(n_users, n_items)), mask


@pytest.mark.parametrize(("n_users", "n_items"), [(1, 2), (40, 3), (25, 64), (7, 1000)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.9, 1.0])
def test_never_a_positive(n_users, n_items, density):
    graph, mask = random_graph(n_users, n_items, density)
    users = torch.arange(n_users).repeat(50)
    negatives = sample_negatives(graph, users, np.random.default_rng(0))
    assert negatives.dtype == torch.int64
    assert negatives.shape == users.shape
    assert 0 <= int(negatives.min()) <= int(negatives.max()) < n_items
    assert not mask[users, negatives].any()


# Quantiles 0.999 of chi-square with 1 to 9 degrees of freedom.
CHI_SQUARE = (10.8, 13.8, 16.3, 18.5, 20.5, 22.5, 24.3, 26.1, 27.9)


@pytest.mark.parametrize("positives", [[], [0], [9], [0, 1, 2], [7, 8, 9], [0, 2, 4, 6, 8], [1, 2, 3, 5, 7, 8, 9, 0]])
def test_uniform_over_what_is_left(positives):
    graph = graph_of([[3], positives, [0, 9]], 10)
    draws = 5000
    negatives = sample_negatives(graph, torch.ones(draws, dtype=torch.int64), np.random.default_rng(2))
    counts = np.bincount(negatives.numpy(), minlength=10)
    left = [item for item in range(10) if item not in positives]
    expected = draws / len(left)
    assert counts[left].sum() == draws
    assert ((counts[left] - expected) ** 2 / expected).sum() < CHI_SQUARE[len(left) - 2]


def test_every_rank_reaches_its_item():
    positives = [1, 2, 5, 6, 7, 11]
    graph = graph_of([positives], 12)
    found = set(sample_negatives(graph, torch.zeros(500, dtype=torch.int32), np.random.default_rng(0)).tolist())
    assert found == set(range(12)) - set(positives)


def test_one_item_left():
    graph = graph_of([[0, 1, 3, 4]], 5)
    assert sample_negatives(graph, torch.zeros(9, dtype=torch.int64), np.random.default_rng(0)).tolist() == [2] * 9


def test_a_seed_repeats_and_a_stream_varies():
    graph, _ = random_graph(20, 100, 0.2)
    users = torch.arange(20).repeat(3)
    generator = np.random.default_rng(7)
    first, second = sample_negatives(graph, users, generator), sample_negatives(graph, users, generator)
    assert torch.equal(first, sample_negatives(graph, users, np.random.default_rng(7)))
    assert not torch.equal(first, second)


def test_implementations_draw_the_same_items_from_a_seed():
    graph, _ = random_graph(40, 300, 0.3)
    users = torch.randint(0, 40, (5000,), generator=torch.Generator().manual_seed(3))
    expected = sample_negatives(graph, users, np.random.default_rng(5), implementation="reference")
    assert torch.equal(sample_negatives(graph, users, np.random.default_rng(5)), expected)


def test_no_users():
    graph, _ = random_graph(3, 5, 0.5)
    assert sample_negatives(graph, torch.empty(0, dtype=torch.int64), np.random.default_rng(0)).shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"graph": None}, TypeError, "graph: found NoneType"),
        ({"users": torch.tensor([0, 1, 0])}, ValueError, "users: found user 1, who has interacted with every one of"),
        ({"users": torch.tensor([2])}, ValueError, "users: found index 2, expected 0 to 1"),
        ({"users": torch.tensor([-1])}, ValueError, "users: found index -1"),
        ({"users": torch.tensor([0.0])}, TypeError, "users: found dtype torch.float32"),
        ({"users": [0]}, TypeError, "users: found list"),
        ({"users": torch.tensor([[0]])}, ValueError, "users: found shape"),
        ({"generator": np.random.RandomState(0)}, TypeError, "generator: found RandomState"),
    ],
)
def test_refusals(change, error, text):
    arguments = {"graph": graph_of([[0], [0, 1, 2]], 3), "users": torch.tensor([0])}
    with pytest.raises(error, match=text):
        sample_negatives(**{**arguments, "generator": np.random.default_rng(0), **change})


def test_no_items_at_all():
    graph = Graph.from_edges([], [], shape=(2, 0))
    with pytest.raises(ValueError, match="every one of the 0 items"):
        sample_negatives(graph, torch.tensor([1]), np.random.default_rng(0))
