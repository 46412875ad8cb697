"""evaluate() against a per-user float64 loop and against ir-measures, and what it refuses."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import AP, RR, P, R, Success, nDCG

from crane.evaluation import METRICS, evaluate, popularity
from crane_kernels import Graph

KS = (1, 3, 5, 10)


def graph(pairs: list[tuple[int, int]], shape: tuple[int, int]) -> Graph:
    row, col = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    return Graph.from_edges(torch.from_numpy(row.copy()), torch.from_numpy(col.copy()), shape=shape)


def random_case(seed: int, n_users: int = 60, n_items: int = 40, integers: bool = False):
    """Embeddings, seen pairs and disjoint target pairs; some users without targets, some with many."""
    rng = np.random.default_rng(seed)
    draw = (
        (lambda n: rng.integers(-2, 3, (n, 3)).astype(np.float64)) if integers else (lambda n: rng.normal(size=(n, 3)))
    )
    user, item = draw(n_users), draw(n_items)
    kind = rng.choice(3, size=(n_users, n_items), p=[0.6, 0.2, 0.2])
    kind[rng.random(n_users) < 0.2] = 0
    kind[0] = 1
    kind[0, 7] = 2
    pairs = [list(zip(*(axis.tolist() for axis in np.nonzero(kind == which)), strict=True)) for which in (1, 2)]
    return user, item, pairs[0], pairs[1]


def rank_one(scores: np.ndarray, seen: set[int]) -> list[int]:
    return sorted((i for i in range(len(scores)) if i not in seen), key=lambda i: (-scores[i], i))


def one_user(ranked: list[int], targets: set[int], k: int) -> dict[str, float]:
    """The metrics as their definitions read, item by item."""
    hits = [1 if item in targets else 0 for item in ranked[:k]]
    found, fits = sum(hits), min(len(targets), k)
    dcg = sum(1 / math.log2(j + 1) for j, hit in enumerate(hits, start=1) if hit)
    ideal = sum(1 / math.log2(j + 1) for j in range(1, fits + 1))
    return {
        "recall": found / len(targets),
        "precision": found / k,
        "hitrate": float(found > 0),
        "mrr": next((1 / j for j, hit in enumerate(hits, start=1) if hit), 0.0),
        "map": sum(sum(hits[:j]) / j for j, hit in enumerate(hits, start=1) if hit) / fits,
        "ndcg": dcg / ideal,
    }


def by_loop(user, item, seen, targets, ks) -> dict[str, float]:
    rows = []
    for u in range(len(user)):
        wanted = {i for v, i in targets if v == u}
        if wanted:
            ranked = rank_one(item @ user[u], {i for v, i in seen if v == u})
            rows.append({f"{name}@{k}": value for k in ks for name, value in one_user(ranked, wanted, k).items()})
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in rows[0]}


@pytest.mark.parametrize("integers", [False, True], ids=["continuous", "many-ties"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ks", [KS, (5, 10, 20, 50), (7, 10**9)], ids=["small", "default", "beyond all items"])
def test_equals_a_loop_over_users(seed, integers, ks):
    user, item, seen, targets = random_case(seed, integers=integers)
    shape = (len(user), len(item))
    found = evaluate(torch.from_numpy(user), torch.from_numpy(item), graph(seen, shape), graph(targets, shape), ks=ks)
    expected = by_loop(user, item, seen, targets, ks)
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key] == pytest.approx(expected[key], abs=1e-12, rel=0), key


def test_a_target_kept_twice_is_one_item():
    user, item, seen, targets = random_case(3)
    shape = (len(user), len(item))
    twice = torch.tensor([pair for pair in targets for _ in range(1 + sum(pair) % 3)])
    kept = Graph.from_edges(twice[:, 0], twice[:, 1], shape=shape, duplicates="keep")
    assert kept.nnz > len(targets)
    found = evaluate(torch.from_numpy(user), torch.from_numpy(item), graph(seen, shape), kept, ks=KS)
    assert found == pytest.approx(by_loop(user, item, seen, targets, KS), abs=1e-12, rel=0)


def test_equals_a_loop_in_blocks(monkeypatch):
    monkeypatch.setattr("crane.evaluation.ranking.BLOCK", 7)
    user, item, seen, targets = random_case(9)
    shape = (len(user), len(item))
    found = evaluate(torch.from_numpy(user), torch.from_numpy(item), graph(seen, shape), graph(targets, shape), ks=KS)
    assert found == pytest.approx(by_loop(user, item, seen, targets, KS), abs=1e-12, rel=0)


def test_equals_ir_measures():
    user, item, seen, targets = random_case(1)
    shape = (len(user), len(item))
    k = 10
    seen_by = {u: {i for v, i in seen if v == u} for u in range(len(user))}
    # trec_eval divides average precision by all targets; ours by those that fit: the two agree up to k targets.
    targets = [(u, i) for u, i in targets if sum(v == u for v, _ in targets) <= k]
    assert len({u for u, _ in targets}) > 20
    qrels = [ir_measures.Qrel(str(u), str(i), 1) for u, i in targets]
    run = [
        ir_measures.ScoredDoc(str(u), str(i), float(-rank))
        for u in {u for u, _ in targets}
        for rank, i in enumerate(rank_one(item @ user[u], seen_by[u]))
    ]
    theirs = {"recall": R, "precision": P, "hitrate": Success, "mrr": RR, "map": AP, "ndcg": nDCG}
    expected = ir_measures.calc_aggregate([measure @ k for measure in theirs.values()], qrels, run)
    found = evaluate(torch.from_numpy(user), torch.from_numpy(item), graph(seen, shape), graph(targets, shape), ks=(k,))
    for name, measure in theirs.items():
        assert found[f"{name}@{k}"] == pytest.approx(expected[measure @ k], abs=1e-12, rel=0), name


def test_perfect_ranking_has_one_everywhere_it_can():
    item = torch.arange(8, 0, -1, dtype=torch.float64)[:, None]
    user = torch.ones(1, 1, dtype=torch.float64)
    found = evaluate(user, item, None, graph([(0, i) for i in range(4)], (1, 8)), ks=(2, 4, 8))
    for name in ("ndcg", "map", "mrr", "hitrate"):
        assert [found[f"{name}@{k}"] for k in (2, 4, 8)] == [1.0, 1.0, 1.0], name
    assert [found[f"recall@{k}"] for k in (2, 4, 8)] == [0.5, 1.0, 1.0]
    assert [found[f"precision@{k}"] for k in (2, 4, 8)] == [1.0, 1.0, 0.5]


def test_ties_go_to_the_lowest_item_and_seen_items_are_not_ranked():
    user, item = torch.ones(1, 1), torch.ones(6, 1)
    targets = graph([(0, 3)], (1, 6))
    assert evaluate(user, item, None, targets, ks=(3, 4), metrics=("recall",)) == {"recall@3": 0.0, "recall@4": 1.0}
    seen = graph([(0, 0), (0, 2)], (1, 6))
    assert evaluate(user, item, seen, targets, ks=(1, 2), metrics=("mrr",)) == {"mrr@1": 0.0, "mrr@2": 0.5}


def test_users_without_targets_are_left_out():
    user, item = torch.ones(3, 1), torch.tensor([[1.0], [2.0]])
    found = evaluate(user, item, None, graph([(1, 1)], (3, 2)), ks=(1,), metrics=("recall",))
    assert found == {"recall@1": 1.0}


def test_a_user_with_nothing_left_to_rank_counts_as_missed():
    user, item = torch.ones(2, 1), torch.ones(2, 1)
    everything = graph([(1, 0), (1, 1)], (2, 2))
    found = evaluate(user, item, everything, graph([(0, 1), (1, 0)], (2, 2)), ks=(2,), metrics=("recall", "ndcg"))
    assert found["recall@2"] == 0.5


def test_popularity_ranks_by_count():
    train = graph([(0, 2), (1, 2), (2, 2), (0, 1), (1, 1), (2, 0)], (4, 4))
    user, item = popularity(train)
    found = evaluate(user, item, train, graph([(2, 1), (3, 2), (0, 0)], (4, 4)), ks=(1,), metrics=("hitrate",))
    assert found == {"hitrate@1": 1.0}


@pytest.mark.parametrize("metrics", [("recall",), tuple(METRICS)])
def test_float32_ranks_as_float64_of_the_same_numbers(metrics):
    user, item, seen, targets = random_case(3, integers=True)
    shape = (len(user), len(item))
    results = [
        evaluate(
            torch.tensor(user, dtype=dtype),
            torch.tensor(item, dtype=dtype),
            graph(seen, shape),
            graph(targets, shape),
            metrics=metrics,
        )
        for dtype in (torch.float32, torch.float64)
    ]
    assert results[0] == results[1]


def refused(error: type[Exception] = ValueError, /, **changed) -> str:
    arguments = {
        "user": torch.ones(3, 2),
        "item": torch.ones(4, 2),
        "seen": None,
        "targets": graph([(0, 0)], (3, 4)),
    } | changed
    with pytest.raises(error) as caught:
        evaluate(**arguments)
    return str(caught.value)


def test_refuses_no_targets():
    assert refused(targets=graph([], (3, 4))) == (
        "targets: no user has an item to be found, so there is nothing to evaluate"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_scores_that_are_not_finite(value):
    broken = torch.ones(4, 2)
    broken[2, 1] = value
    assert refused(item=broken) == "item: row 2 is not finite, so its scores cannot be ranked"
    assert refused(user=torch.full((3, 2), value)).startswith("user: row 0 is not finite")
    assert "overflows torch.float32" in refused(user=torch.full((3, 2), 1e30), item=torch.full((4, 2), 1e30))


def test_refuses_shapes_cutoffs_and_names():
    assert refused(targets=graph([(0, 0)], (3, 5))).startswith("targets: found 3 users x 5 items, expected 3 x 4")
    assert refused(seen=graph([(0, 0)], (2, 4))).startswith("seen: found 2 users x 4 items, expected 3 x 4")
    assert refused(ks=(5, 0)) == "ks: found [5, 0], expected one or more positive integers"
    assert refused(metrics=("recall", "auc")).startswith("metrics: found auc, expected some of recall, ndcg")


def test_refuses_what_is_no_tensor_graph_or_list():
    assert refused(TypeError, user=np.ones((3, 2))) == "user: found ndarray, expected a torch tensor"
    assert refused(TypeError, item=[[1.0, 1.0]]) == "item: found list, expected a torch tensor"
    assert refused(item=torch.ones(4)) == "item: found shape (4,), expected two dimensions"
    assert refused(TypeError, targets=None) == "targets: found NoneType, expected a crane_kernels Graph"
    assert refused(TypeError, seen={0: [1]}) == "seen: found dict, expected a crane_kernels Graph"
    assert refused(TypeError, ks=20) == "ks: found 20, expected a list of positive integers"
    assert refused(TypeError, metrics="recall") == "metrics: found 'recall', expected a list of names"
