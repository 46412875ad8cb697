"""The demo data set is one on which features help: a model blind to them must lose."""

import time
from pathlib import Path

from crane.config import RunConfig
from crane.data import load_dataset
from crane.evaluation import evaluate_split, popularity
from crane.training.environment import environment
from crane.training.folder import RunFolder
from crane.training.trainer import Trainer

METRIC = "recall@20"


def trained(model: str, folder: Path) -> float:
    """Test Recall@20 of ``model`` as ``crane train --data demo --model ...`` trains it."""
    config = RunConfig.from_mapping({"model": model, "data": {"path": "demo"}})
    run = RunFolder(folder)
    run.create(config, environment())
    state = Trainer(config, load_dataset(config.data), run).fit()
    assert state.test is not None
    return state.test[METRIC]


def test_crane_beats_lightgcn_and_both_beat_popularity(tmp_path: Path) -> None:
    dataset = load_dataset(RunConfig.from_mapping({"data": {"path": "demo"}}).data)
    popular = evaluate_split(dataset, "test", *popularity(dataset.graph("train")))[METRIC]
    lightgcn = trained("lightgcn", tmp_path / "lightgcn")
    started = time.process_time()
    crane = trained("crane", tmp_path / "crane")
    assert time.process_time() - started < 60
    assert lightgcn > 1.5 * popular
    assert crane > 1.1 * lightgcn
