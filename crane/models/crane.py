"""CRANE: recursive cross-modal attention with dual graph embedding (arXiv 2601.11151)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from crane.config import check_above, check_at_least, check_between
from crane.data import Dataset
from crane.models.attention import AttentionFusion
from crane.models.base import GraphRecommender, Loss, embedding_table
from crane.models.batch import Batch
from crane.models.features import FeatureProjection, item_features, semantic_graph, unit_rows
from crane_kernels import Graph, bpr_loss, info_nce, propagate, recursive_cross_modal_attention, spmm


@dataclass(frozen=True)
class CRANEConfig:
    """Settings of :class:`CRANE`. Each part of the model is switched off by the value named with it.

    Attributes:
        dim: width d of embeddings and refined features.
        layers: layers of the behaviour graph; 0 switches it off.
        edge_keep: fraction of the training edges that the behaviour graph keeps in an epoch; 1 switches pruning off.
        neighbours: nearest items, itself included, that each modality connects an item to in the semantic graph; 0
            switches semantic embeddings off, and with them the contrastive loss, which then has nothing to compare.
        image_weight: the image's share in the semantic graph; the other modalities share the rest.
        semantic_layers: layers of the semantic graph.
        attention: ``recursive``, the paper's cross-modal attention; or multi-head attention over an item's
            ``modalities`` or over all ``items``, as in the released code. Those put the fused features in the place of
            the item embeddings that travel over the semantic graph, and need ``recursions`` 0.
        heads: of the multi-head attention, a divisor of ``dim``.
        profile_weight: weight of the users' semantic profiles beside their behaviour embeddings; 0 switches user
            profiles off, and with them refined features, which then have nothing to be compared with.
        recursions: recursions R of the cross-modal attention; 0 switches it off.
        feature_weight: weight of the cosine of refined features in the score; 0 switches refined features off.
        feature_lr_scale: learning rate of everything that refines features, as a factor of the embeddings'.
        trainable_features: train the raw features too.
        contrastive_weight: weight of InfoNCE between behaviour and semantic views; 0 switches it off.
        temperature: of InfoNCE.
        l2: weight of half the squared norm of the batch's initial embeddings, a triple; 0 switches it off.
    """

    dim: int = 64
    layers: int = 2
    edge_keep: float = 0.2
    neighbours: int = 10
    image_weight: float = 0.2
    semantic_layers: int = 1
    attention: Literal["recursive", "modalities", "items"] = "recursive"
    heads: int = 4
    profile_weight: float = 4.0
    recursions: int = 2
    feature_weight: float = 2.0
    feature_lr_scale: float = 0.2
    trainable_features: bool = False
    contrastive_weight: float = 3e-3
    temperature: float = 0.2
    l2: float = 5e-3

    def __post_init__(self) -> None:
        for name in ("dim", "heads"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("layers", "neighbours", "semantic_layers", "recursions"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("profile_weight", "feature_weight", "contrastive_weight", "l2"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("edge_keep", "feature_lr_scale", "temperature"):
            check_above(name, getattr(self, name), 0)
        check_between("edge_keep", self.edge_keep, 0, 1)
        check_between("image_weight", self.image_weight, 0, 1)
        if self.attention != "recursive":
            if self.recursions:
                raise ValueError(f"recursions must be 0 with attention {self.attention!r}, found {self.recursions}")
            if not self.neighbours:
                raise ValueError(f"neighbours must be at least 1 with attention {self.attention!r}, found 0")
            if self.dim % self.heads:
                raise ValueError(f"heads must be a divisor of dim, {self.dim}, found {self.heads}")


class Refinement(nn.Module):
    """From raw item features to refined features of users and items, rows of length one.

    Projected rows are scaled to length one before the attention, and its output after it, so that no learned map can
    outgrow the behaviour embeddings. Formulas and names as in :func:`crane_kernels.recursive_cross_modal_attention`.
    """

    def __init__(self, dataset: Dataset, config: CRANEConfig, generator: torch.Generator) -> None:
        super().__init__()
        features = item_features(dataset, "CRANE")
        m, d = len(features), config.dim
        self.recursions = config.recursions
        self.projection = FeatureProjection(features, d, generator, trainable=config.trainable_features)
        if config.recursions:
            self.w_joint = _normal(generator, m * d, d)
            self.b_joint = nn.Parameter(torch.zeros(d))
            self.w_attend = _normal(generator, m, d, d)
            self.w_out = _normal(generator, m, d, d, gain=0.1)  # refinement starts as a small correction
        self.w_refined = embedding_table(m * d, d, generator)
        self.b_refined = nn.Parameter(torch.zeros(d))

    def forward(self, profiles: Graph, rows: Tensor | None = None) -> Tensor:
        """Refined features of the nodes, users before items: (N, d), or of ``rows`` alone.

        ``profiles`` (N x I) maps rows of items to rows of nodes, as :class:`Profiles` makes it.
        """
        items = unit_rows(self.projection())
        if self.recursions:
            x = spmm(profiles, items.flatten(1)).view(-1, *items.shape[1:])
            weights = self.w_joint, self.b_joint, self.w_attend, self.w_out
            x = recursive_cross_modal_attention(x, *weights, self.recursions, rows=rows).flatten(1)
        else:
            x = spmm(profiles, items.flatten(1), rows)
        # A user without a profile stays zero: the bias alone gives no direction, and its gradient would be over zero.
        known = x.any(1, keepdim=True)
        refined = torch.addmm(self.b_refined, x, self.w_refined)
        return unit_rows(refined.where(known, refined.new_ones(()))) * known


class Profiles(nn.Module):
    """Graphs that take rows of items to rows of nodes: a user's is the mean over their items, an item's its own.

    They differ in their values alone: without the pairs of a batch, those edges weigh nothing. A user without other
    items thus gets a row of exact zeros.

    Args:
        interactions: users x items, values of one.
    """

    row: Tensor
    key: Tensor

    def __init__(self, interactions: Graph) -> None:
        super().__init__()
        n_users, self.n_items = interactions.shape
        items = torch.arange(self.n_items)
        row, col = torch.cat([interactions.row(), items + n_users]), torch.cat([interactions.col.long(), items])
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("key", row * self.n_items + col, persistent=False)  # ascends, as the edges do
        self.all = Graph.from_edges(row, col, shape=(n_users + self.n_items, self.n_items)).normalize("row")

    def without(self, users: Tensor, items: Tensor) -> Graph:
        """The graph without the given pairs (those that are edges of it), two (B,) int64 tensors of dense indices."""
        wanted = users * self.n_items + items
        edge = torch.searchsorted(self.key, wanted)
        dtype = torch.promote_types(self.all.dtype, torch.float32)  # half precision cannot count
        kept = torch.ones_like(self.all.value, dtype=dtype).index_fill(0, edge[self.key[edge] == wanted], 0)
        count = kept.new_zeros(self.all.n_rows).index_add(0, self.row, kept)
        return self.all.with_value((kept / count.clamp_min(1)[self.row]).to(self.all.dtype))


class CRANE(GraphRecommender):
    """Two halves, added: behaviour embeddings over the user-item graph, semantic ones over the item-item graph.

    With E the initial embeddings, S the semantic graph and P the users' profiles (means over their items):

    - behaviour: mean of E, Â E, ..., Â^L E over the pruned user-item graph;
    - semantic: S E_item for items, P S E_item for users (in the place of E_item the features that multi-head attention
      has fused, where ``attention`` says so);
    - refined: features of users and items after recursive cross-modal attention, as unit vectors z.

    score(u, i) = <behaviour_u + w_p semantic_u, behaviour_i + semantic_i> + w_f <z_u, z_i>. Features thus decide along
    which edges embeddings travel, and add a bounded term. In training, a profile leaves out the pairs of its batch:
    with them, a user's profile would hold the very item to be predicted.
    """

    config_class: ClassVar[type[Any]] = CRANEConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-3,
        "schedule": "step",
        "decay_factor": 0.85,
        "decay_epochs": 1,
        "epochs": 20,
        "eval_every": 1,
        "patience": 5,
    }

    def __init__(self, dataset: Dataset, config: CRANEConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator, dim=config.dim, edge_keep=config.edge_keep)
        features = item_features(dataset, "CRANE")
        self.item_graph: Graph | None = None
        if config.neighbours:
            self.item_graph = semantic_graph(features, config.neighbours, config.image_weight)
        self.profiles = Profiles(self.interactions)
        refines = config.feature_weight > 0 and config.profile_weight > 0
        self.refinement: Refinement | None = Refinement(dataset, config, generator) if refines else None
        self.fusion: AttentionFusion | None = None
        if config.attention != "recursive":
            self.fusion = AttentionFusion(
                features, config.dim, config.heads, config.attention, generator, trainable=config.trainable_features
            )

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        batch, initial = Batch.of(users, positives, negatives, self.n_users), self.initial()
        profiles = self.profiles.without(users, positives)
        behaviour = propagate(self.epoch_graph, initial, self.config.layers, batch.nodes)
        semantic = self._semantic(profiles, batch.nodes)
        final = self._final(behaviour, semantic, profiles, batch.nodes)
        parts = {"bpr": bpr_loss(final, final, batch.users, batch.positives, batch.negatives)}
        if self.config.contrastive_weight and self.item_graph is not None:
            parts["contrastive"] = self.config.contrastive_weight * self._contrast(behaviour, semantic, batch)
        if self.config.l2:
            parts["l2"] = self.config.l2 * batch.half_squared_norm(initial.index_select(0, batch.nodes))
        return Loss.of(parts)

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        profiles = self.profiles.all
        behaviour = propagate(self.graph, self.initial(), self.config.layers)
        return self.split(self._final(behaviour, self._semantic(profiles), profiles))

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": [self.user_embedding, self.item_embedding]}]
        parts = [part for part in (self.refinement, self.fusion) if part is not None]
        # Adam moves weights that all rows share much faster than the embedding of one user or item.
        groups += [{"params": list(part.parameters()), "lr_scale": self.config.feature_lr_scale} for part in parts]
        return groups

    def _semantic(self, profiles: Graph, rows: Tensor | None = None) -> Tensor:
        """Semantic embeddings of all nodes or of ``rows``, (n, d); a user's is weighted w_p."""
        if self.item_graph is None:
            n = self.profiles.all.n_rows if rows is None else len(rows)
            return self.item_embedding.new_zeros(n, self.config.dim)
        items = self.item_embedding if self.fusion is None else self.fusion()
        for _ in range(self.config.semantic_layers):
            items = spmm(self.item_graph, items)
        semantic = spmm(profiles, items, rows)
        nodes = torch.arange(len(semantic), device=semantic.device) if rows is None else rows
        weight = torch.where(nodes < self.n_users, self.config.profile_weight, 1.0).to(semantic.dtype)
        return weight[:, None] * semantic

    def _final(self, behaviour: Tensor, semantic: Tensor, profiles: Graph, rows: Tensor | None = None) -> Tensor:
        """Vectors whose dot products are the scores, from the views of all nodes or ``rows``: (n, d), or (n, 2d)."""
        if self.refinement is None:
            return behaviour + semantic
        refined = self.refinement(profiles, rows)
        return torch.cat([behaviour + semantic, math.sqrt(self.config.feature_weight) * refined], 1)

    def _contrast(self, behaviour: Tensor, semantic: Tensor, batch: Batch) -> Tensor:
        """InfoNCE between the two views of the batch's positive items, and of its users that have a profile."""
        loss = self._info_nce(behaviour, semantic, torch.unique(batch.positives))
        users = semantic[: batch.n_users].any(1).nonzero().flatten()
        if len(users):
            loss = loss + self._info_nce(behaviour, semantic, users)
        return loss

    def _info_nce(self, a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
        return info_nce(a.index_select(0, rows), b.index_select(0, rows), self.config.temperature)


def _normal(generator: torch.Generator, *shape: int, gain: float = 1.0) -> nn.Parameter:
    """Normal weights of standard deviation gain / sqrt(d), where d is the last size."""
    return nn.Parameter(torch.randn(*shape, generator=generator) * (gain / math.sqrt(shape[-1])))
