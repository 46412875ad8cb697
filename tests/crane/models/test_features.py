"""The item-item graph and the feature projections."""

from collections.abc import Callable

import pytest
import torch

from crane.data import Dataset
from crane.models.features import FeatureProjection, item_features, modality_weights, semantic_graph, unit_rows


def _row_normalised_neighbours(features: torch.Tensor, k: int) -> torch.Tensor:
    unit = features / features.norm(dim=1, keepdim=True)
    nearest = (unit @ unit.T).topk(k).indices
    return torch.zeros(len(features), len(features)).scatter(1, nearest, 1 / k)


def test_semantic_graph_is_the_weighted_sum_of_the_neighbour_graphs(make_dataset: Callable[..., Dataset]) -> None:
    features = item_features(make_dataset("image", "text"), "this model")
    graph = semantic_graph(features, neighbours=4, image_weight=0.25)
    expected = 0.25 * _row_normalised_neighbours(features["image"], 4)
    expected += 0.75 * _row_normalised_neighbours(features["text"], 4)
    torch.testing.assert_close(graph.to_dense(), expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["image", "text"], {"image": 0.1, "text": 0.9}),
        (["text", "visual", "audio"], {"visual": 0.1, "text": 0.45, "audio": 0.45}),
        (["image"], {"image": 1.0}),
        (["text", "audio"], {"text": 0.5, "audio": 0.5}),
    ],
)
def test_modality_weights(names: list[str], expected: dict[str, float]) -> None:
    assert modality_weights(names, 0.1) == pytest.approx(expected)


def test_unit_rows_scale_all_but_zeros() -> None:
    x = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, -1e-15], [5.0, 0.0]]], requires_grad=True)
    unit = unit_rows(x)
    torch.testing.assert_close(unit, torch.tensor([[[0.6, 0.8], [0.0, 0.0]], [[0.0, -1.0], [1.0, 0.0]]]))
    (gradient,) = torch.autograd.grad((unit * torch.tensor([1.0, 2.0])).sum(), x)
    assert torch.equal(gradient[0, 1], torch.zeros(2))
    torch.testing.assert_close(gradient[0, 0], torch.tensor([1.0, 2.0]) / 5 - torch.tensor([3.0, 4.0]) * 11 / 125)


@pytest.mark.parametrize("trainable", [False, True])
def test_projection_is_affine_in_each_modality(make_dataset: Callable[..., Dataset], trainable: bool) -> None:
    features = item_features(make_dataset("image", "text", "a.b"), "this model")
    projection = FeatureProjection(features, 4, torch.Generator().manual_seed(0), trainable=trainable)
    for m, matrix in enumerate(features.values()):
        bias, weight = getattr(projection, f"bias_{m}"), getattr(projection, f"weight_{m}")
        torch.testing.assert_close(projection()[:, m], matrix @ weight + bias)
    assert ("raw_0" in projection.state_dict()) is trainable
    assert ("raw_0" in dict(projection.named_parameters())) is trainable


def test_missing_features_are_refused(make_dataset: Callable[..., Dataset]) -> None:
    with pytest.raises(ValueError, match=r"^some model needs item features, and the data set groups has none"):
        item_features(make_dataset(), "some model")
