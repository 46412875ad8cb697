"""The data set class and the generated one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from crane.data import DataConfig, Dataset, Interactions, demo_dataset, load_dataset
from crane.data.demo import CLUSTERS, ITEMS_PER_CLUSTER, demo_items, image_features, text_features


def pairs(*rows):
    array = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return Interactions.from_pairs(array[:, 0], array[:, 1])


def small(**changes):
    fields = {
        "name": "small",
        "user_ids": np.array([10, 20]),
        "item_ids": np.array(["a", "b", "c"], dtype=object),
        "train": pairs((1, 2), (0, 1), (1, 0), (0, 1)),
        "validation": pairs((0, 0)),
        "test": pairs(),
        "features": {"image": np.zeros((3, 2), dtype=np.float32)},
        "notices": ("one thing happened",),
    }
    return Dataset(**{**fields, **changes})


def test_interactions_are_sorted_and_distinct():
    train = small().train
    assert (train.users.tolist(), train.items.tolist()) == ([0, 1, 1], [1, 0, 2])
    assert (train.users.dtype, len(train)) == (np.int64, 3)


def test_graphs_of_one_split_or_several():
    data = small()
    np.testing.assert_array_equal(data.graph().to_dense(), [[0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(data.graph("train", "validation").to_dense(), [[1, 1, 0], [1, 0, 1]])
    assert data.graph("test").shape == (2, 3)
    with pytest.raises(ValueError, match="split is 'dev', expected one of train, validation, test"):
        data.graph("dev")


def test_summary_and_description():
    data = small()
    assert data.summary() == {
        "name": "small",
        "users": 2,
        "items": 3,
        "interactions": 4,
        "train": 3,
        "validation": 1,
        "test": 0,
        "density": 4 / 6,
        "cold_items": 0,
        "modalities": {"image": 2},
    }
    assert data.describe().splitlines() == [
        "small: 2 users, 3 items, 4 interactions (density 66.6667%)",
        "train 3, validation 1, test 0; 0 items without training interactions",
        "modalities: image (2)",
        "note: one thing happened",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": pairs((0, 3))}, "test.items spans 3 to 3, expected 0 to 2"),
        ({"test": pairs((-1, 0))}, "test.users spans -1 to -1, expected 0 to 1"),
        ({"test": Interactions(np.array([0]), np.array([-2]))}, "test.items spans -2 to -2, expected 0 to 2"),
        ({"train": pairs((0, 1))}, "user 20 has no training interaction, expected one"),
        (
            {"features": {"image": np.zeros((2, 2), dtype=np.float32)}},
            r"features\['image'\] is float32 of shape \(2, 2\)",
        ),
        (
            {"features": {"image": np.zeros((3, 2))}},
            r"is float64 of shape \(3, 2\), expected float32 of shape \(3, d\)",
        ),
    ],
)
def test_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_demo_repeats_by_seed():
    first, again, other = demo_dataset(3), load_dataset(DataConfig(path="demo", seed=3)), demo_dataset(4)
    for split in ("train", "validation", "test"):
        for axis in ("users", "items"):
            a, b = (getattr(getattr(data, split), axis) for data in (first, again))
            np.testing.assert_array_equal(a, b)
    for modality in ("image", "text"):
        np.testing.assert_array_equal(first.features[modality], again.features[modality])
        assert (first.features[modality] != other.features[modality]).any()
    assert len(first.train) != len(other.train)


@pytest.mark.parametrize(
    "setting",
    [{"k_core": 5}, {"split": "time"}, {"ratios": (8.0, 1.0, 0.0)}, {"modalities": {}}, {"format": "plain"}],
)
def test_demo_refuses_settings_of_files(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"^data.{name} is .*, but demo is generated, expected the default, "):
        load_dataset(DataConfig(path="demo", **setting))


def test_demo_has_the_sizes_and_ids_it_promises():
    data = demo_dataset()
    assert (data.n_users, data.n_items) == (1200, 720)
    assert data.user_ids[42] == "user-0042"
    assert "teal-ring-07" in data.item_ids.tolist()
    assert len(set(data.item_ids.tolist())) == 720
    assert {name: matrix.shape for name, matrix in data.features.items()} == {"image": (720, 192), "text": (720, 64)}
    per_user = np.bincount(data.test.users)
    assert (per_user.min(), per_user.max()) == (1, 1)


def test_demo_images_and_texts_show_the_clusters():
    items = demo_items(np.random.default_rng(0))
    assert items.images.shape == (720, 8, 8, 3)
    assert items.images.dtype == np.uint8
    colour, shape = CLUSTERS[items.clusters[100]]
    assert set(items.texts[100].split()[:2]) <= {"red", "crimson", "scarlet"}, (colour, shape)
    for features in (image_features(items.images), text_features(items.texts)):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
        nearest = np.argsort(-similarity, axis=1)[:, :5]
        same = items.clusters[nearest] == items.clusters[:, None]
        assert same.mean() > 0.5  # by chance: 19 / 719


def test_text_features_are_the_documented_formula():
    features = text_features(["red ring", "red red disc"], width=1 << 16)
    columns = np.flatnonzero(features.any(axis=0))
    assert len(columns) == 3
    common, rare = np.log(3 / 3) + 1, np.log(3 / 2) + 1
    first = np.array([common, rare]) / np.hypot(common, rare)
    second = np.array([2 * common, rare]) / np.hypot(2 * common, rare)
    np.testing.assert_allclose(np.sort(features[0][features[0] > 0]), np.sort(first), rtol=1e-6)
    np.testing.assert_allclose(np.sort(features[1][features[1] > 0]), np.sort(second), rtol=1e-6)


def _recall(data, scores, k=20):
    """Mean over users of the share of test items among the k best unseen."""
    scores = scores.astype(np.float64)
    scores[data.train.users, data.train.items] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best[data.test.users] == data.test.items[:, None]).any(axis=1).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo_content_tells_more_than_popularity(seed):
    data = demo_dataset(seed)
    train = np.zeros((data.n_users, data.n_items))
    train[data.train.users, data.train.items] = 1
    content = np.zeros((data.n_items, data.n_items))
    for features in data.features.values():
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        content += unit @ unit.T
    popularity = _recall(data, np.tile(train.sum(axis=0), (data.n_users, 1)))
    known_cluster = train @ np.kron(np.eye(len(CLUSTERS)), np.ones((ITEMS_PER_CLUSTER, ITEMS_PER_CLUSTER)))
    by_cluster = _recall(data, known_cluster + 0.01 * train.sum(axis=0))
    by_content = _recall(data, train @ content)
    assert 2 * 20 / data.n_items < popularity < 0.15  # worth having, and no bar to clear by luck
    assert by_content > 2 * popularity
    assert by_cluster > by_content  # the planted structure is the most there is to learn


def test_dataset_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().name = "other"
