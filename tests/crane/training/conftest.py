"""Runs on the small data set, and their comparison."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from crane.config import RunConfig, merge
from crane.data import Dataset, load_dataset
from crane.training.environment import environment
from crane.training.folder import RunFolder
from crane.training.trainer import Trainer


@pytest.fixture(scope="session")
def tiny(tiny_data: Path) -> Dataset:
    """The small data set, loaded."""
    return load_dataset(tiny_config(tiny_data).data)


@pytest.fixture
def make_trainer(tiny_data: Path, tiny: Dataset) -> Callable[..., Trainer]:
    """Makes a trainer of a folder and settings; a new folder becomes a run folder."""

    def make(folder: Path, *settings: str, dataset: Dataset = tiny) -> Trainer:
        config = tiny_config(tiny_data, *settings)
        run = RunFolder(folder)
        if not run.config.exists():
            run.create(config, environment())
        return Trainer(config, dataset, run)

    return make


def tiny_config(data: Path, *settings: str) -> RunConfig:
    """LightGCN for a few epochs on ``data``."""
    base = {
        "model": {"name": "lightgcn", "dim": 8, "layers": 2},
        "data": {"path": str(data)},
        # Spelled out, so that the tests do not depend on what suits LightGCN.
        "training": {
            "epochs": 4,
            "batch_size": 128,
            "learning_rate": 0.01,
            "schedule": "constant",
            "eval_every": 1,
            "patience": 20,
            "threads": 1,
        },
    }
    return RunConfig.from_mapping(merge(base, settings))


@pytest.fixture
def timeless() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the lines of a run's metrics.jsonl, without what a clock says."""
    return _timeless


@pytest.fixture
def assert_same_run() -> Callable[[Path, Path], None]:
    """Compares two runs: metrics, states, weights, optimiser states and exports are equal bit for bit."""

    def check(one: Path, other: Path) -> None:
        assert _timeless(one) == _timeless(other)
        names = sorted(path.name for path in (one / "checkpoints").iterdir())
        assert names == sorted(path.name for path in (other / "checkpoints").iterdir())
        assert (one / "checkpoints/state.json").read_text() == (other / "checkpoints/state.json").read_text()
        files = ["export.safetensors", *(f"checkpoints/{name}" for name in names if name.endswith(".safetensors"))]
        for name in files:
            a, b = load_file(one / name), load_file(other / name)
            assert a.keys() == b.keys()
            assert [key for key in a if a[key].numpy().tobytes() != b[key].numpy().tobytes()] == [], name

    return check


def _timeless(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_seconds")} for line in lines]
