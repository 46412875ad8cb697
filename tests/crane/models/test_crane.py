"""CRANE against its formulas written out, its parts one by one, and its training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crane.data import Dataset, Interactions
from crane.models import CRANE
from crane.models.crane import CRANEConfig, Profiles
from crane_kernels import Graph, propagate
from crane_kernels.recursive_cross_modal_attention.reference import direct_form

MakeDataset = Callable[..., Dataset]
BATCH = 16


def _model(dataset: Dataset, **settings: Any) -> CRANE:
    return CRANE(dataset, CRANEConfig(**{"dim": 8, "neighbours": 4, **settings}), torch.Generator().manual_seed(0))


def _batch(dataset: Dataset, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(dataset.train)))[start : start + BATCH]
    users, positives = torch.from_numpy(dataset.train.users)[order], torch.from_numpy(dataset.train.items)[order]
    return users, positives, (positives + 7) % dataset.n_items


def _train(model: CRANE, dataset: Dataset, steps: int = 60) -> list[float]:
    optimizer = torch.optim.Adam([{"params": group["params"]} for group in model.parameter_groups()], lr=0.02)
    model.begin_epoch(np.random.default_rng(0))
    losses = []
    for step in range(steps):
        loss = model.loss(*_batch(dataset, step % 10 * BATCH)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _written_out(model: CRANE, dataset: Dataset, adjacency: Tensor, interactions: Tensor) -> Tensor:
    """All scores (U, I), dense: ``adjacency`` is the user-item graph's matrix, ``interactions`` the profiles'."""
    config, refinement = model.config, model.refinement
    assert refinement is not None
    initial = torch.cat([model.user_embedding, model.item_embedding])
    zeros = [torch.zeros(n, n, dtype=initial.dtype) for n in adjacency.shape]
    square = torch.cat([torch.cat([zeros[0], adjacency], 1), torch.cat([adjacency.T, zeros[1]], 1)])
    root = square.sum(1).clamp_min(1e-30).rsqrt()
    normalised = root[:, None] * square * root
    behaviour = torch.stack([torch.matrix_power(normalised, layer) @ initial for layer in range(3)]).mean(0)
    profile = interactions / interactions.sum(1, keepdim=True).clamp_min(1)
    assert model.item_graph is not None
    semantic = model.item_graph.to_dense().to(initial.dtype) @ model.item_embedding
    items = F.normalize(refinement.projection(), dim=2)
    users = torch.einsum("ui,imd->umd", profile, items)
    x = torch.cat([users, items])
    scale = 1 / (x.shape[0] * x.shape[2]) ** 0.5
    r = refinement
    x = direct_form(x, r.w_joint, r.b_joint, r.w_attend, r.w_out, config.recursions, scale)
    z = F.normalize(x.flatten(1) @ r.w_refined + r.b_refined)
    n_users = dataset.n_users
    user = behaviour[:n_users] + config.profile_weight * profile @ semantic
    return user @ (behaviour[n_users:] + semantic).T + config.feature_weight * z[:n_users] @ z[n_users:].T


def test_scores_are_the_written_out_formulas(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("image", "text")
    model = _model(dataset).double()
    user, item = model.embeddings()
    interactions = dataset.graph("train").to_dense().double()
    torch.testing.assert_close(user @ item.T, _written_out(model, dataset, interactions, interactions).detach())


def test_training_scores_use_the_pruned_graph_and_leave_the_batch_out_of_profiles(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("image", "text")
    model = _model(dataset, contrastive_weight=0.0, l2=0.0).double()
    model.begin_epoch(np.random.default_rng(3))
    users, positives, negatives = _batch(dataset)
    pruned = model.epoch_graph.to_dense()[: dataset.n_users, dataset.n_users :].gt(0).double()
    interactions = dataset.graph("train").to_dense().double()
    assert 0 < pruned.sum() < interactions.sum() / 4
    interactions[users, positives] = 0
    scores = _written_out(model, dataset, pruned, interactions)
    expected = F.softplus(scores[users, negatives] - scores[users, positives]).mean()
    torch.testing.assert_close(model.loss(users, positives, negatives).total, expected)


def test_contrastive_and_l2_parts(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("text")
    model = _model(dataset, contrastive_weight=0.5, temperature=0.3, l2=0.1).double()
    users, positives, negatives = _batch(dataset)
    parts = model.loss(users, positives, negatives).parts
    initial = [model.user_embedding[users], model.item_embedding[positives], model.item_embedding[negatives]]
    norms = torch.stack([x.square().sum() for x in initial]).sum()
    torch.testing.assert_close(parts["l2"], 0.1 * norms.detach() / (2 * BATCH))
    initial_nodes = torch.cat([model.user_embedding, model.item_embedding])
    dense = model.graph.to_dense()
    behaviour = (initial_nodes + dense @ initial_nodes + dense @ dense @ initial_nodes) / 3
    assert model.item_graph is not None
    semantic = model.item_graph.to_dense().double() @ model.item_embedding
    interactions = dataset.graph("train").to_dense().double()
    interactions[users, positives] = 0
    profiles = interactions @ semantic / interactions.sum(1, keepdim=True).clamp_min(1)
    expected = torch.zeros((), dtype=torch.float64)
    for a, b, rows in (
        (behaviour[dataset.n_users :], semantic, positives.unique()),
        (behaviour[: dataset.n_users], profiles, users.unique()),
    ):
        cosines = F.normalize(a[rows]) @ F.normalize(b[rows]).T
        expected = expected + F.cross_entropy(cosines / 0.3, torch.arange(len(rows)))
    torch.testing.assert_close(parts["contrastive"], 0.5 * expected.detach())


@pytest.mark.parametrize("modalities", [["text"], ["image", "text", "audio"], ["image", "text", "audio", "video"]])
def test_any_number_of_modalities_trains(make_dataset: MakeDataset, modalities: list[str]) -> None:
    dataset = make_dataset(*modalities)
    losses = _train(_model(dataset), dataset)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.parametrize(
    "off",
    ["layers", "neighbours", "profile_weight", "recursions", "feature_weight", "contrastive_weight", "l2"],
)
def test_each_part_switches_off_and_the_rest_trains(make_dataset: MakeDataset, off: str) -> None:
    dataset = make_dataset("image", "text")
    model = _model(dataset, **{off: 0})
    whole = _model(dataset)
    losses = _train(model, dataset)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    batch = _batch(dataset)
    assert not torch.equal(model.loss(*batch).total, whole.loss(*batch).total)


def test_without_neighbours_the_semantic_embeddings_are_gone(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("image", "text")
    model = _model(dataset, neighbours=0)
    user, item = model.embeddings()
    expected = model.split(propagate(model.graph, model.initial().detach(), 2))
    assert torch.equal(user[:, :8], expected[0])
    assert torch.equal(item[:, :8], expected[1])
    assert user[:, 8:].any()
    assert set(model.loss(*_batch(dataset)).parts) == {"bpr", "l2"}


def test_switched_off_refinement_has_no_weights(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("image", "text")
    assert _model(dataset, feature_weight=0.0).refinement is None
    assert _model(dataset, profile_weight=0.0).refinement is None
    assert not [name for name, _ in _model(dataset, recursions=0).named_parameters() if "attend" in name]


def test_without_pruning_the_epoch_graph_is_the_whole_graph(make_dataset: MakeDataset) -> None:
    model = _model(make_dataset("text"), edge_keep=1.0)
    model.begin_epoch(np.random.default_rng(0))
    assert model.epoch_graph is model.graph


def test_epoch_graph_follows_from_the_generator(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("text")
    one, other = _model(dataset), _model(dataset)
    one.begin_epoch(np.random.default_rng(1))
    first = one.epoch_graph.to_dense()
    one.begin_epoch(np.random.default_rng(2))
    other.begin_epoch(np.random.default_rng(2))
    assert not torch.equal(one.epoch_graph.to_dense(), first)
    assert torch.equal(one.epoch_graph.to_dense(), other.epoch_graph.to_dense())


def test_initial_weights_follow_from_the_generator(make_dataset: MakeDataset) -> None:
    one, other = _model(make_dataset("image", "text")), _model(make_dataset("image", "text"))
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("trainable", [False, True])
def test_raw_features_train_only_where_asked(make_dataset: MakeDataset, trainable: bool) -> None:
    dataset = make_dataset("image", "text")
    model = _model(dataset, trainable_features=trainable)
    before = torch.from_numpy(dataset.features["text"]).clone()
    _train(model, dataset, steps=5)
    assert model.refinement is not None
    assert torch.equal(model.refinement.projection.raw_1.detach(), before) is not trainable
    np.testing.assert_array_equal(dataset.features["text"], before.numpy())
    assert ("refinement.projection.raw_1" in model.state_dict()) is trainable


def test_parameter_groups_hold_every_parameter_once_and_slow_the_shared_ones(make_dataset: MakeDataset) -> None:
    model = _model(make_dataset("image", "text"), feature_lr_scale=0.5)
    embeddings, refinement = model.parameter_groups()
    held = [id(parameter) for group in (embeddings, refinement) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert refinement["lr_scale"] == 0.5
    assert {id(p) for p in embeddings["params"]} == {id(model.user_embedding), id(model.item_embedding)}


def test_every_parameter_gets_a_gradient(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("image", "text")
    model = _model(dataset, trainable_features=True)
    model.loss(*_batch(dataset)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_items_without_features_leave_the_gradient_finite_and_as_large_as_others(make_dataset: MakeDataset) -> None:
    """Before p_m has moved, a row of zeros is projected to zero, which has no direction."""
    dataset = make_dataset("image", "text")
    whole = _model(dataset)
    whole.loss(*_batch(dataset)).total.backward()
    dataset.features["image"][:2] = 0
    model = _model(dataset)
    model.loss(*_batch(dataset)).total.backward()
    for (name, p), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert p.grad is not None, name
        assert other.grad is not None, name
        assert 0 < p.grad.norm() < 3 * other.grad.norm(), name


def test_user_whose_only_item_is_in_the_batch_has_an_empty_profile_and_a_finite_loss() -> None:
    dataset = _one_item_each()
    model = _model(dataset)
    users = torch.from_numpy(dataset.train.users)
    loss = model.loss(users, torch.from_numpy(dataset.train.items), (users + 1) % 4).total
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def _one_item_each() -> Dataset:
    features = {"text": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    each, none = np.arange(4), np.arange(0)
    empty = Interactions.from_pairs(none, none)
    return Dataset("singles", each, each, Interactions.from_pairs(each, each), empty, empty, features=features)


def test_features_are_required(make_dataset: MakeDataset) -> None:
    with pytest.raises(ValueError, match=r"^CRANE needs item features, and the data set groups has none"):
        _model(make_dataset())


@pytest.mark.parametrize(
    ("setting", "value"),
    [("edge_keep", 0.0), ("edge_keep", 1.5), ("recursions", -1), ("temperature", 0.0), ("image_weight", 2.0)],
)
def test_settings_out_of_range_are_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{setting} must be"):
        CRANEConfig(**{setting: value})  # type: ignore[arg-type]


def test_user_whose_items_are_all_in_the_batch_leaves_no_rounding_error(make_dataset: MakeDataset) -> None:
    """Summing a user's items and taking them away again leaves 1e-8 of noise, which must not become a direction."""
    dataset = make_dataset("image", "text")
    batch = _all_items_of_some_users(dataset)
    model = _model(dataset)
    model.loss(*batch).total.backward()
    exact = _model(dataset).double()
    assert exact.item_graph is not None
    exact.interactions, exact.item_graph = exact.interactions.to(torch.float64), exact.item_graph.to(torch.float64)
    exact.epoch_graph = exact.epoch_graph.to(torch.float64)
    exact.loss(*batch).total.backward()
    assert model.refinement is not None
    assert exact.refinement is not None
    found, expected = model.refinement.b_refined.grad, exact.refinement.b_refined.grad
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def _all_items_of_some_users(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Every training pair of five users, with any other item as the negative."""
    chosen = dataset.train.users < 5
    users, items = torch.from_numpy(dataset.train.users[chosen]), torch.from_numpy(dataset.train.items[chosen])
    return users, items, (items + 1) % dataset.n_items


def test_profiles_count_in_half_precision_too() -> None:
    n = 1000
    profiles = Profiles(Graph.from_edges(torch.zeros(n, dtype=torch.long), torch.arange(n), shape=(1, n)))
    profiles.all = profiles.all.to(torch.bfloat16)
    without = profiles.without(torch.tensor([0]), torch.tensor([0])).value[:n]
    expected = torch.full((n,), 1 / (n - 1), dtype=torch.bfloat16)
    expected[0] = 0
    assert torch.equal(without, expected)


def test_profiles_leave_out_the_given_pairs_and_no_others() -> None:
    interactions = Graph.from_edges([0, 0, 0, 2], [0, 1, 3, 2], shape=(3, 4))
    profiles = Profiles(interactions)
    own = torch.eye(4)
    users = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(
        profiles.all.to_dense(), torch.cat([users / users.sum(1, keepdim=True).clamp_min(1), own])
    )
    # The same pair twice, pairs that are no interactions, and a user's only one.
    without = profiles.without(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 1, 3, 2, 0]))
    expected = torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(without.to_dense(), torch.cat([expected, own]), rtol=0, atol=0)
