"""Models of the authors' released code, written from its description, and what loads their state dicts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crane import legacy
from crane.data import DataConfig, Dataset, load_dataset

DIM, K, IMAGE_WEIGHT = 16, 5, 0.1


class CrossModalAttention(nn.Module):
    def __init__(self, over: str) -> None:
        super().__init__()
        self.visual_proj = nn.Linear(DIM, DIM)
        self.textual_proj = nn.Linear(DIM, DIM)
        self.attention = nn.MultiheadAttention(DIM, 4, batch_first=over == "modalities")

    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)], dim=1)
        return self.attention(tokens, tokens, tokens)[0].mean(dim=1)


class Released(nn.Module):
    """The released CRANE on (2, E) pairs of user and item ids."""

    def __init__(self, pairs: np.ndarray, features: list[Tensor], over: str, layers: int, mm_layers: int) -> None:
        super().__init__()
        self.n_users, self.n_items = int(pairs[0].max()) + 1, len(features[0])
        self.layers, self.mm_layers = layers, mm_layers
        visual, textual = features
        self.user_embedding = nn.Embedding(self.n_users, DIM)
        self.item_id_embedding = nn.Embedding(self.n_items, DIM)
        self.image_embedding = nn.Embedding.from_pretrained(visual, freeze=False)
        self.text_embedding = nn.Embedding.from_pretrained(textual, freeze=False)
        self.image_trs = nn.Linear(visual.shape[1], DIM)
        self.text_trs = nn.Linear(textual.shape[1], DIM)
        self.cross_modal_attention = CrossModalAttention(over)
        self.norm_adj = self.adjacency(pairs)
        image_adj, text_adj = (self.nearest(x) for x in features)
        self.mm_adj = IMAGE_WEIGHT * image_adj + (1 - IMAGE_WEIGHT) * text_adj

    def adjacency(self, pairs: np.ndarray) -> Tensor:
        n = self.n_users + self.n_items
        upper = sp.coo_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1] + self.n_users)), shape=(n, n))
        both = upper + upper.T
        scale = sp.diags((np.asarray(both.sum(axis=1)).flatten() + 1e-7) ** -0.5)
        scaled = sp.coo_matrix(scale @ both @ scale)
        indices = torch.from_numpy(np.stack([scaled.row, scaled.col]).astype(np.int64))
        return torch.sparse_coo_tensor(indices, torch.from_numpy(scaled.data).float(), (n, n), check_invariants=False)

    def nearest(self, features: Tensor) -> Tensor:
        unit = F.normalize(features)
        columns = torch.topk(unit @ unit.T, K).indices.flatten()
        rows = torch.arange(len(features)).repeat_interleave(K)
        values = torch.full((len(rows),), 1 / (K + 1e-7))
        size = (len(features),) * 2
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, size, check_invariants=False)

    def scores(self) -> Tensor:
        layer = torch.cat([self.user_embedding.weight, self.item_id_embedding.weight])
        layers = [layer]
        for _ in range(self.layers):
            layer = torch.sparse.mm(self.norm_adj, layer)
            layers.append(layer)
        user, item = torch.stack(layers, 1).mean(1).split([self.n_users, self.n_items])
        image, text = self.image_trs(self.image_embedding.weight), self.text_trs(self.text_embedding.weight)
        fused = self.cross_modal_attention(image, text)
        for _ in range(self.mm_layers):
            fused = torch.sparse.mm(self.mm_adj, fused)
        return user @ (item + fused).T


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """In MMRec's format: user 11 has no training interactions, so that later users' rows and ids differ."""
    folder = tmp_path / "toy"
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["userID\titemID\tx_label"]
    for user in range(40):
        for place, item in enumerate(generator.choice(30, 6, replace=False)):
            label = {0: 1, 1: 2}.get(place, 0) if user != 11 else 2
            lines.append(f"{user}\t{item}\t{label}")
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")
    for name, width in (("image", 24), ("text", 12)):
        np.save(folder / f"{name}_feat.npy", generator.standard_normal((30, width), dtype=np.float32))
    return load_dataset(DataConfig(path=str(folder)))


def released(dataset: Dataset, over: str, layers: int = 2, mm_layers: int = 1) -> Released:
    torch.manual_seed(0)
    pairs = np.stack([dataset.user_ids[dataset.train.users], dataset.train.items])
    features = [torch.from_numpy(dataset.features[name]).clone() for name in ("image", "text")]
    model = Released(pairs, features, over, layers, mm_layers)
    with torch.no_grad():
        for parameter in model.parameters():  # trained: away from the data and from zero biases
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("over", ["items", "modalities"])
@pytest.mark.parametrize(("layers", "mm_layers"), [(2, 1), (3, 2)])
def test_scores_are_the_released_codes(dataset: Dataset, over: str, layers: int, mm_layers: int) -> None:
    theirs = released(dataset, over, layers, mm_layers)
    settings = {"attention": over, "layers": layers, "semantic_layers": mm_layers, "neighbours": K}
    model = legacy.from_state_dict(theirs.state_dict(), dataset, **settings)
    user, item = model.embeddings()
    expected = theirs.scores()[dataset.user_ids].detach()
    assert len(user) == 39
    torch.testing.assert_close(user @ item.T, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_training_goes_on_from_the_loaded_weights(dataset: Dataset) -> None:
    model = legacy.from_state_dict(released(dataset, "items").state_dict(), dataset, neighbours=K, l2=0.0)
    users, items = torch.from_numpy(dataset.train.users), torch.from_numpy(dataset.train.items)
    groups = model.parameter_groups()
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    optimizer = torch.optim.Adam([{"params": group["params"]} for group in groups], lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(users, items, items.flip(0)).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "settings", "error", "text"),
    [
        ({"image_trs.bias": None}, {}, ValueError, "found no image_trs.bias"),
        ({"gate.weight": torch.zeros(1)}, {}, ValueError, "found gate.weight, which the released CRANE does not have"),
        ({"user_embedding.weight": torch.zeros(20, DIM)}, {}, ValueError, "found user 20, expected integers from 0"),
        (
            {"cross_modal_attention.visual_proj.weight": torch.zeros(DIM, 24)},
            {},
            ValueError,
            r"shape \(16, 24\) for cross_modal_attention.visual_proj.weight, expected \(16, 16\)",
        ),
        ({"user_embedding.weight": torch.zeros(40)}, {}, ValueError, r"found shape \(40,\) .*, expected 2 dimensions"),
        ({"image_embedding.weight": torch.zeros(20, 24)}, {}, ValueError, "found 20 rows in image_embedding.weight"),
        ({"image_trs.bias": torch.full((DIM,), torch.nan)}, {}, ValueError, "NaN or infinite values in image_trs.bias"),
        ({"image_trs.bias": torch.zeros(DIM, dtype=torch.complex64)}, {}, ValueError, "a tensor of torch.complex64"),
        ({"image_trs.bias": torch.zeros(DIM, device="meta")}, {}, ValueError, "on meta .*, expected dense"),
        ({"image_embedding.weight": np.zeros((30, 24))}, {}, ValueError, "found ndarray for image_embedding.weight"),
        ({}, {"trainable_features": False}, ValueError, "the state's image_embedding.weight is not the data set's"),
        ({"text_embedding.weight": torch.zeros(30, 13)}, {}, ValueError, r"found shape \(30, 13\)"),
        ({}, {"depth": 2}, TypeError, "found depth, which CRANE does not have"),
        ({}, {"attention": "recursive"}, ValueError, "found 'recursive', expected 'items' or 'modalities'"),
        ({}, {"attention": "users"}, ValueError, "attention: found 'users', expected 'items' or 'modalities'"),
        ({}, {"recursions": 2}, ValueError, "recursions must be 0 with attention 'items', found 2"),
        ({}, {"neighbours": 0}, ValueError, "neighbours must be at least 1 with attention 'items', found 0"),
        ({}, {"layers": "2"}, TypeError, "settings.layers must be an integer, found the text '2'"),
        ({}, {"neighbours": None}, TypeError, "settings.neighbours must be an integer, found nothing"),
        ({}, {"heads": 3}, ValueError, "heads must be a divisor of dim, 16, found 3"),
    ],
)
def test_refusals(
    dataset: Dataset, change: dict[str, Tensor | None], settings: dict[str, object], error: type[Exception], text: str
) -> None:
    state: dict[str, Tensor] = dict(released(dataset, "items").state_dict())
    for name, value in change.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    with pytest.raises(error, match=text):
        legacy.from_state_dict(state, dataset, **settings)


def test_refuses_what_is_no_state_dict_or_data_set(dataset: Dataset) -> None:
    theirs = released(dataset, "items")
    with pytest.raises(TypeError, match=f"state: found {type(theirs).__name__}, expected a state dict"):
        legacy.from_state_dict(theirs, dataset)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dataset: found str, expected a crane Dataset"):
        legacy.from_state_dict(theirs.state_dict(), "baby")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"state: found no cross_modal_attention.attention.in_proj_bias, expected"):
        legacy.from_state_dict({}, dataset)


def test_features_that_were_not_trained_can_stay_frozen(dataset: Dataset) -> None:
    theirs = released(dataset, "items")
    with torch.no_grad():
        theirs.image_embedding.weight.copy_(torch.from_numpy(dataset.features["image"]))
        theirs.text_embedding.weight.copy_(torch.from_numpy(dataset.features["text"]))
    model = legacy.from_state_dict(theirs.state_dict(), dataset, neighbours=K, trainable_features=False)
    user, item = model.embeddings()
    expected = theirs.scores()[dataset.user_ids].detach()
    torch.testing.assert_close(user @ item.T, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("ids", [np.arange(30) - 1, np.array([f"i{item}" for item in range(30)], dtype=object)])
def test_ids_that_are_no_rows_are_refused(dataset: Dataset, ids: np.ndarray) -> None:
    state = released(dataset, "items").state_dict()
    with pytest.raises(ValueError, match=rf"found item '?{ids[0]}'?, expected integers from 0 to 29"):
        legacy.from_state_dict(state, replace(dataset, item_ids=ids))


def test_two_modalities_are_needed(dataset: Dataset) -> None:
    state = released(dataset, "items").state_dict()
    del dataset.features["text"]
    with pytest.raises(ValueError, match="found the modalities image, expected an image and one other"):
        legacy.from_state_dict(state, dataset)
