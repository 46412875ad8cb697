"""Edge pruning: what is kept, how many, how often, and that a seed repeats it."""

import itertools

import numpy as np
import pytest
import torch

from crane_kernels import Graph, extension, prune_edges, use_implementation


@pytest.fixture(params=["reference", "cpp"], autouse=True)
def _implementation(request):
    """Run every test on both implementations."""
    reason = extension.missing() if request.param == "cpp" else None
    if reason is not None:
        pytest.skip(reason)
    with use_implementation(prune_edges=request.param):
        yield


def interactions(n_users=30, n_items=20, density=0.3):
    mask = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(0)) < density
    row, col = mask.nonzero().T
    return Graph.from_edges(row, col, shape=(n_users, n_items))


def edges(graph):
    return list(zip(graph.row().tolist(), graph.col.tolist(), strict=True))


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.999, 1.0, 1])
def test_keeps_a_subset_of_the_asked_size_in_order(keep):
    graph = interactions()
    kept = prune_edges(graph, keep, np.random.default_rng(0))
    assert kept.shape == graph.shape
    assert kept.nnz == max(1, round(keep * graph.nnz))
    assert set(edges(kept)) <= set(edges(graph))
    assert edges(kept) == sorted(edges(kept))
    assert torch.equal(kept.value, torch.ones(kept.nnz))
    assert kept.rowptr[-1] == kept.nnz


def test_the_kept_graph_can_be_renormalised_and_the_given_one_stays():
    graph = interactions()
    before = graph.to_dense().clone()
    kept = prune_edges(graph, 0.5, np.random.default_rng(0))
    nodes = kept.bipartite().normalize("symmetric")
    dense = kept.to_dense()
    scale = dense.sum(1).clamp(min=1)[:, None] * dense.sum(0).clamp(min=1)
    torch.testing.assert_close(nodes.to_dense()[: graph.n_rows, graph.n_rows :], dense / scale.sqrt())
    assert torch.equal(graph.to_dense(), before)


def test_a_seed_repeats_and_a_stream_varies():
    graph = interactions()
    generator = np.random.default_rng(5)
    first, second = prune_edges(graph, 0.4, generator), prune_edges(graph, 0.4, generator)
    again = prune_edges(graph, 0.4, np.random.default_rng(5))
    assert edges(first) == edges(again)
    assert edges(first) != edges(second)


def subset_probabilities(weights, count):
    """Probability of every set of ``count`` edges under successive draws proportional to weight."""
    chances = {}
    for order in itertools.permutations(range(len(weights)), count):
        left, chance = sum(weights), 1.0
        for edge in order:
            chance *= weights[edge] / left
            left -= weights[edge]
        key = frozenset(order)
        chances[key] = chances.get(key, 0.0) + chance
    return chances


def test_is_the_weighted_sample_without_replacement():
    graph = Graph.from_edges([0, 0, 0, 1, 2], [0, 1, 2, 0, 3], shape=(3, 4))
    degrees = [(3, 2), (3, 1), (3, 1), (1, 2), (1, 1)]
    chances = subset_probabilities([1 / (u * i) ** 0.5 for u, i in degrees], 2)
    generator, draws = np.random.default_rng(1), 1200
    counts = dict.fromkeys(chances, 0)
    place = {edge: index for index, edge in enumerate(edges(graph))}
    for _ in range(draws):
        counts[frozenset(place[edge] for edge in edges(prune_edges(graph, 0.4, generator)))] += 1
    statistic = sum((counts[s] - draws * p) ** 2 / (draws * p) for s, p in chances.items())
    assert statistic < 27.9  # the 0.999 quantile of chi-square with 9 degrees of freedom


def test_values_stay_with_their_edges_and_weigh():
    graph = Graph.from_edges([0, 1, 2], [0, 1, 2], [0.0, 2.0, 5.0], shape=(3, 3))
    for seed in range(20):
        kept = prune_edges(graph, 2 / 3, np.random.default_rng(seed))
        assert edges(kept) == [(1, 1), (2, 2)]
        assert kept.value.tolist() == [2.0, 5.0]


def test_a_graph_without_edges():
    empty = Graph.from_edges([], [], shape=(3, 2))
    assert prune_edges(empty, 0.5, np.random.default_rng(0)).nnz == 0


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"graph": torch.zeros(3, 2)}, TypeError, "graph: found Tensor"),
        ({"graph": Graph.from_edges([0], [0], [-1.0])}, ValueError, "negative"),
        ({"keep": 0.0}, ValueError, "keep: found 0.0"),
        ({"keep": 1.5}, ValueError, "keep: found 1.5, expected a fraction"),
        ({"keep": 100}, ValueError, "keep: found 100, expected a fraction"),
        ({"keep": float("nan")}, ValueError, "keep: found nan"),
        ({"keep": "half"}, TypeError, "keep: found 'half'"),
        ({"generator": torch.Generator()}, TypeError, "generator: found Generator, expected a numpy"),
        ({"generator": 0}, TypeError, "generator: found int"),
    ],
)
def test_refusals(change, error, text):
    with pytest.raises(error, match=text):
        prune_edges(**{"graph": interactions(), "keep": 0.5, "generator": np.random.default_rng(0), **change})


@pytest.mark.parametrize("seed", range(10))
def test_implementations_keep_the_same_edges_of_equal_keys_too(seed):
    graph = interactions()
    weightless = torch.rand(graph.nnz, generator=torch.Generator().manual_seed(seed)) < 0.8
    graph = graph.with_value((~weightless).float())
    kept = prune_edges(graph, 0.5, np.random.default_rng(seed))
    expected = prune_edges(graph, 0.5, np.random.default_rng(seed), implementation="reference")
    assert edges(kept) == edges(expected)
