"""LightGCN, FREEDOM and VBPR against their formulas written out, and their training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crane.data import Dataset
from crane.models import FREEDOM, MODELS, VBPR, LightGCN, Recommender

MakeDataset = Callable[..., Dataset]


def _model(kind: type[Recommender], dataset: Dataset, **settings: Any) -> Any:
    return kind(dataset, kind.config_class(**{"dim": 8, **settings}), torch.Generator().manual_seed(0))


def _batch(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    users, positives = torch.from_numpy(dataset.train.users[::5]), torch.from_numpy(dataset.train.items[::5])
    return users, positives, (positives + 7) % dataset.n_items


def _bpr(scores: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    return F.softplus(scores[users, negatives] - scores[users, positives]).mean()


def _layer_mean(graph: Tensor, initial: Tensor, layers: int) -> Tensor:
    return torch.stack([torch.matrix_power(graph, layer) @ initial for layer in range(layers + 1)]).mean(0)


def _half_squared_norms(initial: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Of the batch's rows of (U + I, d) initial embeddings, a triple."""
    rows = torch.cat([users, positives + 40, negatives + 40])
    return initial[rows].square().sum() / (2 * len(users))


def test_lightgcn_scores_and_loss(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    model = _model(LightGCN, dataset, layers=3, l2=0.2).double()
    adjacency = dataset.graph("train").to_dense().double()
    normalised = adjacency / (adjacency.sum(1, keepdim=True) * adjacency.sum(0)).sqrt().clamp_min(1e-30)
    square = torch.zeros(70, 70, dtype=torch.float64)
    square[:40, 40:], square[40:, :40] = normalised, normalised.T
    initial = torch.cat([model.user_embedding, model.item_embedding])
    nodes = _layer_mean(square, initial, 3)
    user, item = model.embeddings()
    torch.testing.assert_close(torch.cat([user, item]), nodes.detach())
    batch = _batch(dataset)
    bpr, l2 = _bpr(nodes[:40] @ nodes[40:].T, *batch), 0.2 * _half_squared_norms(initial, *batch)
    loss = model.loss(*batch)
    torch.testing.assert_close(loss.total, bpr + l2)
    torch.testing.assert_close(loss.parts, {"bpr": bpr.detach(), "l2": l2.detach()})


def test_freedom_scores_and_loss(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("image", "text")
    model = _model(FREEDOM, dataset, neighbours=4, feature_weight=0.3, l2=0.2).double()
    model.begin_epoch(np.random.default_rng(0))
    initial = torch.cat([model.user_embedding, model.item_embedding])
    semantic = model.item_graph.to_dense().double() @ model.item_embedding

    def outputs(graph: Tensor) -> tuple[Tensor, Tensor]:
        nodes = _layer_mean(graph, initial, 2)
        return nodes[:40], nodes[40:] + semantic

    for found, expected in zip(model.embeddings(), outputs(model.graph.to_dense()), strict=True):
        torch.testing.assert_close(found, expected.detach())
    assert model.epoch_graph.nnz == 2 * round(0.2 * len(dataset.train))
    user, item = outputs(model.epoch_graph.to_dense())
    batch = _batch(dataset)
    expected = _bpr(user @ item.T, *batch) + 0.2 * _half_squared_norms(initial, *batch)
    for features in model.projection().unbind(1):
        expected = expected + 0.3 * _bpr(user @ features.T, *batch)
    torch.testing.assert_close(model.loss(*batch).total, expected)


def test_vbpr_scores_and_loss(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("image", "text")
    model = _model(VBPR, dataset, l2=0.2).double()
    user, item = model.embeddings()
    assert user.shape == (40, 24)
    torch.testing.assert_close(item[:, :8], model.item_embedding.detach())
    torch.testing.assert_close(item[:, 8:], model.projection().flatten(1).detach())
    users, positives, negatives = batch = _batch(dataset)
    norms = torch.stack([x.square().sum() for x in (user[users], item[positives], item[negatives])]).sum()
    expected = _bpr(user @ item.T, *batch) + 0.2 * norms / (2 * len(users))
    torch.testing.assert_close(model.loss(*batch).total, expected)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_trains_and_holds_each_parameter_in_one_group(make_dataset: MakeDataset, name: str) -> None:
    dataset = make_dataset("image", "text")
    model = _model(MODELS[name], dataset)
    parameters = [parameter for group in model.parameter_groups() for parameter in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, model.parameters()))
    model.begin_epoch(np.random.default_rng(0))
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for _ in range(40):
        loss = model.loss(*_batch(dataset)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        user, item = model.embeddings()
        users, positives, negatives = _batch(dataset)
        correct = (user[users] * (item[positives] - item[negatives])).sum(1) > 0
    assert correct.float().mean() > 0.8


@pytest.mark.parametrize("kind", [FREEDOM, VBPR])
def test_features_are_required(make_dataset: MakeDataset, kind: type[Recommender]) -> None:
    with pytest.raises(ValueError, match=f"^{kind.__name__} needs item features"):
        _model(kind, make_dataset())
