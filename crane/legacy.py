"""Models that the authors' released code of CRANE trained, as :class:`crane.CRANE`.

The released code differs from the paper: no recursion, no user profiles, no contrastive loss. It projects trainable raw
features twice, fuses them by one ``nn.MultiheadAttention``, and adds what the item graph makes of them to the items'
behaviour embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crane.config import build
from crane.data import Dataset
from crane.models import CRANE
from crane.models.crane import CRANEConfig
from crane.models.features import IMAGE_NAMES
from crane_kernels import checks

SETTINGS: dict[str, Any] = {
    "attention": "items",
    "recursions": 0,
    "profile_weight": 0.0,
    "contrastive_weight": 0.0,
    "edge_keep": 1.0,
    "image_weight": 0.1,
    "feature_lr_scale": 1.0,
    "trainable_features": True,
}
"""Settings of :class:`crane.models.crane.CRANEConfig` with which CRANE is the released code's model."""

_ATTENTION = "cross_modal_attention.attention."
# Theirs: the parameters of a modality, and what they are here. Weights of linear layers are transposed here.
_OF_MODALITY = {
    "image": ("image_embedding", "image_trs", "cross_modal_attention.visual_proj"),
    "text": ("text_embedding", "text_trs", "cross_modal_attention.textual_proj"),
}


def from_state_dict(state: Mapping[str, Tensor], dataset: Dataset, **settings: Any) -> CRANE:
    """The model of a state dict of the released code: the same scores, and what training needs to continue.

    Users and items are found by their ids, which are row numbers in that code. The item graph is made from the data
    set's features, as that code makes it before training.

    Args:
        state: ``model.state_dict()`` of the released ``CRANE``.
        dataset: the data that it was trained on, with one image and one other modality.
        **settings: of :class:`crane.models.crane.CRANEConfig`, over :data:`SETTINGS`; those of the scores are
            ``attention`` (``"items"`` or ``"modalities"``, what its attention ran over), ``layers``,
            ``semantic_layers``, ``neighbours``, ``image_weight`` and ``heads``.

    Raises:
        TypeError: ``state`` is no state dict, ``dataset`` no data set, or a setting does not exist.
        ValueError: a parameter is missing, not known, of the wrong shape or kind, or not finite, the data set does not
            fit, or features that were trained would be lost by ``trainable_features=False``.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state: found {type(state).__name__}, expected a state dict")
    checks.instance("dataset", dataset, Dataset)
    expected = _expected_names()
    for name in sorted(expected):
        if name not in state:
            raise ValueError(f"state: found no {name}, expected the released CRANE's parameters by their own names")
    for name in state:
        if name not in expected:
            raise ValueError(f"state: found {name}, which the released CRANE does not have")
    for name in sorted(expected):
        _check_parameter(name, state[name])
    dim = state["user_embedding.weight"].shape[1]
    given = {"dim": dim, **SETTINGS, **settings}
    unknown = given.keys() - {field.name for field in fields(CRANEConfig)}
    if unknown:
        raise TypeError(f"settings: found {min(unknown)}, which CRANE does not have")
    if given["attention"] not in ("items", "modalities"):
        raise ValueError(f"attention: found {given['attention']!r}, expected 'items' or 'modalities'")
    model = CRANE(dataset, build(CRANEConfig, given, "settings"), torch.Generator().manual_seed(0))
    model.load_state_dict(_converted(state, dataset, model.state_dict()))
    return model


def _expected_names() -> set[str]:
    names = {"user_embedding.weight", "item_id_embedding.weight"}
    for raw, *linears in _OF_MODALITY.values():
        names |= {f"{raw}.weight", *(f"{linear}.{kind}" for linear in linears for kind in ("weight", "bias"))}
    return names | {
        _ATTENTION + name for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }


def _check_parameter(name: str, value: object) -> None:
    dimensions = 1 if name.endswith("bias") else 2
    if not isinstance(value, Tensor):
        raise ValueError(f"state: found {type(value).__name__} for {name}, expected a tensor")
    if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        found = f"a tensor of {value.dtype} on {value.device} ({value.layout})"
        raise ValueError(f"state: found {found} for {name}, expected dense floating-point values")
    if value.dim() != dimensions:
        raise ValueError(f"state: found shape {tuple(value.shape)} for {name}, expected {dimensions} dimensions")
    if not bool(value.isfinite().all()):
        raise ValueError(f"state: found NaN or infinite values in {name}, expected finite ones")


def _converted(state: Mapping[str, Tensor], dataset: Dataset, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state by this package's names, in the shapes of ``like``."""
    users = _rows("user", dataset.user_ids, state["user_embedding.weight"])
    items = _rows("item", dataset.item_ids, state["item_id_embedding.weight"])
    found: dict[str, Tensor] = {
        "user_embedding": state["user_embedding.weight"][users],
        "item_embedding": state["item_id_embedding.weight"][items],
    }
    for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        found[f"fusion.attention.{name}"] = state[_ATTENTION + name]
    dim = like["user_embedding"].shape[1]
    weights, biases = [], []
    for m, (modality, given) in enumerate(zip(_modalities(dataset), dataset.features.values(), strict=True)):
        raw, projection, token = _OF_MODALITY[modality]
        features = _features(f"{raw}.weight", state, items)
        if f"fusion.projection.raw_{m}" in like:
            found[f"fusion.projection.raw_{m}"] = features
        elif not torch.equal(features.to("cpu", torch.float32), torch.from_numpy(given)):
            why = f"the state's {raw}.weight is not the data set's features"
            raise ValueError(f"trainable_features: found False, expected True, since {why}")
        found[f"fusion.projection.weight_{m}"] = state[f"{projection}.weight"].T
        found[f"fusion.projection.bias_{m}"] = state[f"{projection}.bias"]
        weights.append(_of_shape(f"{token}.weight", state[f"{token}.weight"], (dim, dim)).T)
        biases.append(_of_shape(f"{token}.bias", state[f"{token}.bias"], (dim,))[None])
    found["fusion.w_token"], found["fusion.b_token"] = torch.stack(weights), torch.stack(biases)
    return {name: _of_shape(name, tensor, tuple(like[name].shape)) for name, tensor in found.items()}


def _features(name: str, state: Mapping[str, Tensor], items: Tensor) -> Tensor:
    found, expected = len(state[name]), len(state["item_id_embedding.weight"])
    if found != expected:
        raise ValueError(f"state: found {found} rows in {name}, expected {expected}, as in item_id_embedding.weight")
    return state[name][items]


def _of_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"state: found shape {tuple(tensor.shape)} for {name}, expected {shape}")
    return tensor


def _rows(what: str, ids: np.ndarray, table: Tensor) -> Tensor:
    """The rows of ``table`` that belong to ``ids``, which are the rows themselves."""
    wrong = ids[(ids < 0) | (ids >= len(table))] if ids.dtype.kind == "i" else ids
    if len(wrong):
        expected = f"expected integers from 0 to {len(table) - 1}, the rows in the state"
        raise ValueError(f"dataset: found {what} {wrong.tolist()[0]!r}, {expected}")
    return torch.from_numpy(ids.astype(np.int64))


def _modalities(dataset: Dataset) -> list[str]:
    """For each modality of the data set, whether it is the image or the text."""
    found = ["image" if name in IMAGE_NAMES else "text" for name in dataset.features]
    if sorted(found) != ["image", "text"]:
        names = ", ".join(dataset.features) or "none"
        raise ValueError(f"dataset: found the modalities {names}, expected an image and one other")
    return found
