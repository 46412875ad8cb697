"""The models, by the name that ``--model`` takes."""

from crane.models.base import Loss, Recommender
from crane.models.lightgcn import LightGCN

MODELS: dict[str, type[Recommender]] = {"lightgcn": LightGCN}

__all__ = ["MODELS", "LightGCN", "Loss", "Recommender"]
