"""Data sets: MMRec folders, RecBole atomic files, plain tables, and a generated one. ``docs/data.md`` has the rules."""

from crane.data.config import DataConfig
from crane.data.dataset import Dataset, Interactions
from crane.data.demo import demo_dataset
from crane.data.load import load_dataset

__all__ = ["DataConfig", "Dataset", "Interactions", "demo_dataset", "load_dataset"]
