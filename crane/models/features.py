"""What the multimodal models share: their features, and the item-item graph that the features decide."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crane.data import Dataset
from crane.models.base import embedding_table
from crane_kernels import Graph, knn_graph

IMAGE_NAMES = ("image", "images", "visual", "v")


def item_features(dataset: Dataset, model: str) -> dict[str, Tensor]:
    """The raw features of every modality, by name: (I, d_m) float32 each.

    Raises:
        ValueError: the data set has no features; ``model`` names what needs them.
    """
    if not dataset.features:
        raise ValueError(
            f"{model} needs item features, and the data set {dataset.name} has none: expected at least one modality,"
            " such as image_feat.npy (--model lightgcn needs none)"
        )
    return {name: torch.from_numpy(matrix) for name, matrix in dataset.features.items()}


def semantic_graph(features: Mapping[str, Tensor], neighbours: int, image_weight: float) -> Graph:
    """S = sum of w_m kNN_m over the modalities: (I, I), rows sum to one (FREEDOM, Zhou and Shen 2023, equation 4).

    The modality called image (or visual) weighs ``image_weight`` and the others share the rest equally; without an
    image, or with nothing else, all weigh the same.
    """
    n_items = next(iter(features.values())).shape[0]
    weights = modality_weights(list(features), image_weight)
    graphs = [(knn_graph(matrix, neighbours), weights[name]) for name, matrix in features.items()]
    return Graph.from_edges(
        torch.cat([graph.row() for graph, _ in graphs]),
        torch.cat([graph.col.long() for graph, _ in graphs]),
        torch.cat([graph.value * weight for graph, weight in graphs]),
        shape=(n_items, n_items),
    )


def modality_weights(names: list[str], image_weight: float) -> dict[str, float]:
    """Each modality's share in the semantic graph; the shares sum to one."""
    images = [name for name in names if name in IMAGE_NAMES]
    others = [name for name in names if name not in IMAGE_NAMES]
    if not images or not others:
        return dict.fromkeys(names, 1 / len(names))
    return {
        **dict.fromkeys(images, image_weight / len(images)),
        **dict.fromkeys(others, (1 - image_weight) / len(others)),
    }


def unit_rows(x: Tensor) -> Tensor:
    """Vectors along the last dimension, scaled to length one; one of zeros stays zero and gets a zero gradient."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit: Tensor = x / norm.masked_fill(norm == 0, torch.inf)
    return unit


class FeatureProjection(nn.Module):
    """X_m = F_m P_m + p_m for every modality.

    Args:
        features: raw features by modality, (I, d_m) each.
        dim: width d of the projections.
        generator: draws the initial P_m (Xavier-uniform); p_m starts at zero.
        trainable: whether the raw features F_m are parameters too; frozen, they stay out of checkpoints.
    """

    def __init__(
        self, features: Mapping[str, Tensor], dim: int, generator: torch.Generator, *, trainable: bool = False
    ) -> None:
        super().__init__()
        self.modalities = len(features)
        for m, matrix in enumerate(features.values()):
            if trainable:
                self.register_parameter(f"raw_{m}", nn.Parameter(matrix.clone()))
            else:
                self.register_buffer(f"raw_{m}", matrix, persistent=False)
            self.register_parameter(f"weight_{m}", embedding_table(matrix.shape[1], dim, generator))
            self.register_parameter(f"bias_{m}", nn.Parameter(torch.zeros(dim)))

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Projections of all items, (I, M, d), or of ``rows`` (n,) of them, (n, M, d)."""
        return torch.stack([self._projected(m, rows) for m in range(self.modalities)], 1)

    def _projected(self, m: int, rows: Tensor | None) -> Tensor:
        raw = getattr(self, f"raw_{m}")
        chosen = raw if rows is None else raw.index_select(0, rows)
        return torch.addmm(getattr(self, f"bias_{m}"), chosen, getattr(self, f"weight_{m}"))
