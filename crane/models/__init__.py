"""The models, by the name that ``--model`` takes."""

from crane.models.base import Loss, Recommender
from crane.models.crane import CRANE
from crane.models.freedom import FREEDOM
from crane.models.lightgcn import LightGCN
from crane.models.vbpr import VBPR

MODELS: dict[str, type[Recommender]] = {"crane": CRANE, "lightgcn": LightGCN, "freedom": FREEDOM, "vbpr": VBPR}

__all__ = ["CRANE", "FREEDOM", "MODELS", "VBPR", "LightGCN", "Loss", "Recommender"]
