"""Checkpoints that are valid whenever the process dies.

A checkpoint is two tensor files, ``weights-000007.safetensors`` and ``optimizer-000007.safetensors``, and
``state.json``, which names the epoch and is written last: it alone decides which files count. The best weights are the
weights file of the best epoch, so they are never written twice. Files that no state names are removed afterwards.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crane.files import write_text
from crane.tensors import load_tensors, save_tensors

_STATE = "state.json"


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


_FITS: dict[str, Callable[[Any], bool]] = {
    "data": lambda value: isinstance(value, str),
    "epoch": _is_count,
    "best_epoch": _is_count,
    "best_value": lambda value: value is None or _is_number(value),
    "evaluations_since_best": _is_count,
    "finished": lambda value: value is None or isinstance(value, str),
    "test": lambda value: value is None or (isinstance(value, dict) and all(map(_is_number, value.values()))),
}


@dataclass(frozen=True)
class TrainingState:
    """The scalars of a run between two epochs.

    Attributes:
        data: fingerprint of the data set the run is trained on.
        epoch: epochs done.
        best_epoch: epoch of the best validation value, or the last one without validation interactions; 0 before the
            first evaluation.
        best_value: that value, unrounded; None without.
        evaluations_since_best: evaluations after it.
        finished: why training ended; None while it goes on.
        test: metrics of the test split with the best weights, once measured; empty when the split is.
    """

    data: str
    epoch: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    evaluations_since_best: int = 0
    finished: str | None = None
    test: dict[str, float] | None = None


class Checkpoints:
    """The checkpoints folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write weights, optimiser state and ``state``, which from then on are the checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._weights(state.epoch), model.state_dict())
        save_tensors(self._optimizer(state.epoch), _optimizer_tensors(model, optimizer))
        self.save_state(state)
        self._remove_others(state)

    def save_state(self, state: TrainingState) -> None:
        """Write the scalars alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / _STATE, json.dumps(dataclasses.asdict(state), indent=2) + "\n")

    def load_state(self) -> TrainingState | None:
        """The scalars of the last checkpoint; None when there is none.

        Raises:
            ValueError: the file does not hold them.
        """
        path = self.folder / _STATE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = {entry.name for entry in dataclasses.fields(TrainingState)}
            if not isinstance(content, dict) or content.keys() != names:
                raise ValueError(f"it does not hold the entries {', '.join(sorted(names))}")
            for name, value in content.items():
                if not _FITS[name](value):
                    raise ValueError(f"{name} is {value!r}")
            return TrainingState(**content)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{path} is damaged and the run cannot be read: {error}") from error

    def load_weights(self, epoch: int, model: nn.Module) -> None:
        """Put the weights of ``epoch`` into ``model``.

        Raises:
            ValueError: the file is missing or damaged, or holds the weights of a different model.
        """
        path = self._weights(epoch)
        try:
            model.load_state_dict(_load(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} does not fit the model and the data set of the run: {reason}") from error

    def load_optimizer(self, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the optimiser's state after ``epoch`` into ``optimizer``.

        Raises:
            ValueError: the file is missing or damaged.
        """
        saved = _load(self._optimizer(epoch))
        names = _parameter_names(model)
        content = optimizer.state_dict()
        content["state"] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            prefix = names[parameter] + "/"
            entries = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
            if entries:
                content["state"][index] = entries
        optimizer.load_state_dict(content)

    def _weights(self, epoch: int) -> Path:
        return self.folder / f"weights-{epoch:06d}.safetensors"

    def _optimizer(self, epoch: int) -> Path:
        return self.folder / f"optimizer-{epoch:06d}.safetensors"

    def _remove_others(self, state: TrainingState) -> None:
        keep = {self._weights(state.epoch), self._weights(state.best_epoch), self._optimizer(state.epoch)}
        for path in self.folder.glob("*.safetensors"):
            if path not in keep:
                path.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)
    except FileNotFoundError as error:
        raise ValueError(f"the checkpoint {path} is missing") from error
    except ValueError as error:
        raise ValueError(f"the checkpoint {error}") from error


def _parameter_names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _parameter_names(model)
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }
