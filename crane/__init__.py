"""CRANE: a recommender for items that come with images and text.

>>> import crane
>>> model = crane.load("runs/crane-demo-20260102-030405")
>>> model.recommend(["some user"], k=20)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crane.config import RunConfig
    from crane.data import DataConfig, Dataset, demo_dataset, load_dataset
    from crane.evaluation import evaluate
    from crane.models import CRANE, MODELS, Recommender
    from crane.recommend import TrainedModel, load

# Imported when first asked for: torch takes a second, and `crane --help` needs none of it.
_EXPORTS = {
    "CRANE": "crane.models",
    "MODELS": "crane.models",
    "DataConfig": "crane.data",
    "Dataset": "crane.data",
    "Recommender": "crane.models",
    "RunConfig": "crane.config",
    "TrainedModel": "crane.recommend",
    "demo_dataset": "crane.data",
    "evaluate": "crane.evaluation",
    "load": "crane.recommend",
    "load_dataset": "crane.data",
}

__all__ = [
    "CRANE",
    "MODELS",
    "DataConfig",
    "Dataset",
    "Recommender",
    "RunConfig",
    "TrainedModel",
    "demo_dataset",
    "evaluate",
    "load",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'crane' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
