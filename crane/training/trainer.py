"""The training loop."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.utils.deterministic
from torch import Tensor, nn

from crane.config import RunConfig
from crane.data import Dataset
from crane.evaluation import evaluate_split
from crane.evaluation.ranking import check_finite
from crane.recommend import export, load
from crane.sampling import EpochSampler
from crane.seeds import Purpose, numpy_generator, torch_seed
from crane.training.checkpoint import TrainingState
from crane.training.events import EventWriter
from crane.training.folder import RunFolder
from crane.training.progress import Reporter, SilentReporter
from crane.training.run import build_model, check_same_data, fingerprint
from crane.training.schedule import learning_rate_factor

SOUND_RATE = 0.01  # a learning rate that is worth a try where a larger one diverged

_deterministic: Any = torch.utils.deterministic  # an object in a module's place, which type checkers do not see


class DivergenceError(RuntimeError):
    """The loss or a parameter became NaN or infinite; the message says which, when, and what to try."""


@dataclass(frozen=True)
class _Epoch:
    """What one pass over the training pairs gave: the names and the (steps, len(names)) values of the loss."""

    names: tuple[str, ...]
    values: Tensor


class Trainer:
    """Trains the model of ``config`` on ``dataset`` and leaves everything in the run's folder.

    The folder must have been created; when it holds a checkpoint, training goes on from there. With the same number of
    threads, an interrupted and continued run gives the same weights and metrics, bit for bit, as one that was not.

    Args:
        config: the run's configuration.
        dataset: its data set.
        folder: where checkpoints and metrics go.
        reporter: told about steps and epochs.
        check: called before each step and each evaluation; what it raises ends the training, which can be continued.

    Raises:
        ValueError: there is nothing to train on, or nothing to validate with although early stopping is on, the device
            or TensorBoard is not there, or the data set is not the one of the checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        folder: RunFolder,
        reporter: Reporter | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.reporter = reporter or SilentReporter()
        self.check = check
        self.device = find_device(config.training.device)
        self.events = EventWriter(folder.tensorboard) if config.training.tensorboard else None
        self.sampler = EpochSampler(dataset, config.training.batch_size, config.seed)
        if not len(dataset.validation) and config.training.patience is not None:
            raise ValueError(
                f"the data set {dataset.name} has no validation interactions, which early stopping needs: train a "
                "fixed number of epochs with --set training.patience=null training.epochs=N, and the last one is kept"
            )
        with reproducible(config.training.threads):
            self._build()

    def _build(self) -> None:
        """Put the model, the optimiser and the state where the last checkpoint left them, or at the start."""
        self.model = build_model(self.config, self.dataset).to(self.device)
        self.optimizer = build_optimizer(self.model, self.config.training.learning_rate)
        state = self.folder.checkpoints.load_state()
        if state is None:
            self.folder.check_no_epochs()
            state = TrainingState(data=fingerprint(self.dataset))
        else:
            check_same_data(state, self.dataset)
        if state.epoch:
            self.folder.read_metrics(state.epoch)
            self.folder.checkpoints.load_weights(state.epoch, self.model)
            self.folder.checkpoints.load_optimizer(state.epoch, self.model, self.optimizer)
        self.state = state

    def fit(self) -> TrainingState:
        """Train until early stopping or the last epoch, then measure the test split once, with the best weights.

        Raises:
            DivergenceError: the loss or a parameter became NaN or infinite.
            ValueError: another process is training in the folder.
        """
        self.folder.claim()
        try:
            self.folder.remove_leftovers()
            self.folder.truncate_metrics(self.state.epoch)
            with reproducible(self.config.training.threads), self.reporter:
                self.reporter.start(self.config.training.epochs, len(self.sampler), self.state.epoch)
                while self.state.finished is None:
                    self._epoch(self.state.epoch + 1)
                if self.state.test is None or not self._is_exported():
                    self._finish()
        finally:
            self.folder.release()
        return self.state

    def _is_exported(self) -> bool:
        try:
            load(self.folder.path)
        except ValueError:  # missing, or damaged since
            return False
        return True

    def _epoch(self, number: int) -> None:
        started = time.perf_counter()
        epoch = self._train(number)
        trained = time.perf_counter()
        validation = self._validate(number)
        loss, *parts = epoch.values.double().mean(dim=0).tolist()
        training = self.config.training
        record = {
            "epoch": number,
            "loss": loss,
            "parts": dict(zip(epoch.names[1:], parts, strict=True)),
            "learning_rate": training.learning_rate * self._rate_factor(number, len(self.sampler) - 1),
            "validation": validation,
            "train_seconds": trained - started,
            "evaluate_seconds": None if validation is None else time.perf_counter() - trained,
        }
        state = self._advance(number, validation)
        self.folder.append_metrics(record)
        if self.events is not None:
            self.events.write(record)
        self.folder.checkpoints.save(state, self.model, self.optimizer)
        self.state = state
        self.reporter.epoch(record, training.metric, (state.best_epoch, state.best_value))

    def _train(self, number: int) -> _Epoch:
        """One pass over the training pairs; losses wait for the device at its end alone."""
        self._begin(number)
        values: list[Tensor] = []
        names: tuple[str, ...] = ()
        for step, batch in enumerate(self.sampler.epoch(number, self.device)):
            names, value = self._step(number, step, batch)
            values.append(value)
            self.reporter.step(value[0])
        epoch = _Epoch(names, torch.stack(values).cpu())
        if not bool(epoch.values.isfinite().all()) or first_not_finite(self.model.named_parameters()) is not None:
            self._explain(number, epoch)
        return epoch

    def _begin(self, number: int) -> None:
        self.model.train()
        torch.manual_seed(torch_seed(self.config.seed, number, Purpose.TORCH))
        self.model.begin_epoch(numpy_generator(self.config.seed, number, Purpose.MODEL))

    def _step(
        self, number: int, step: int, batch: tuple[Tensor, Tensor, Tensor], *, check: bool = False
    ) -> tuple[tuple[str, ...], Tensor]:
        self.check()
        self._set_learning_rate(self._rate_factor(number, step))
        self.optimizer.zero_grad()
        loss = self.model.loss(*batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        if check:
            self._check_step(number, step, loss.parts)
        if self.config.training.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.gradient_clip)
        self.optimizer.step()
        return ("loss", *loss.parts), torch.stack([loss.total.detach(), *loss.parts.values()])

    def _rate_factor(self, number: int, step: int) -> float:
        before = number - 1 + step / len(self.sampler)
        return learning_rate_factor(self.config.training, before, number - 1 + (step + 1) / len(self.sampler))

    def _set_learning_rate(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.training.learning_rate * factor * group["lr_scale"]

    def _validate(self, number: int) -> dict[str, float] | None:
        training = self.config.training
        if not len(self.dataset.validation) or (number % training.eval_every and number != training.epochs):
            return None
        return self._measure("validation", *self._embeddings(number))

    def _embeddings(self, number: int) -> tuple[Tensor, Tensor]:
        """The final embeddings with the weights of epoch ``number``; finite weights can still overflow in them."""
        self.check()
        self.model.eval()
        user, item = self.model.embeddings()
        try:
            check_finite(user, item)
        except ValueError as error:
            raise DivergenceError(
                f"training stopped in epoch {number}: the final embeddings diverged ({error}); {self._advice()}"
            ) from error
        return user, item

    def _measure(self, split: str, user: Tensor, item: Tensor) -> dict[str, float]:
        evaluation = self.config.evaluation
        return evaluate_split(
            self.dataset,
            split,
            user,
            item,
            mask_validation=evaluation.mask_validation,
            ks=evaluation.ks,
            metrics=evaluation.metrics,
        )

    def _advance(self, number: int, validation: dict[str, float] | None) -> TrainingState:
        """The state after epoch ``number``."""
        training, state = self.config.training, dataclasses.replace(self.state, epoch=number)
        if validation is not None:
            value = validation[training.metric]
            if state.best_value is None or value > state.best_value:
                state = dataclasses.replace(state, best_epoch=number, best_value=value, evaluations_since_best=0)
            else:
                state = dataclasses.replace(state, evaluations_since_best=state.evaluations_since_best + 1)
        elif not len(self.dataset.validation):
            state = dataclasses.replace(state, best_epoch=number)
        if number >= training.epochs:
            return dataclasses.replace(state, finished="all epochs done")
        if training.patience is not None and state.evaluations_since_best >= training.patience:
            return dataclasses.replace(state, finished=f"{training.patience} evaluations without a new best")
        return state

    def _finish(self) -> None:
        """With the best weights: export what recommending needs, and measure the test split (if it has anything)."""
        self.folder.checkpoints.load_weights(self.state.best_epoch, self.model)
        user, item = self._embeddings(self.state.best_epoch)
        export(self.folder.path, self.dataset, user, item)
        test = self._measure("test", user, item) if len(self.dataset.test) else {}
        state = dataclasses.replace(self.state, test=test)
        self.folder.checkpoints.save_state(state)
        self.state = state

    def _explain(self, number: int, epoch: _Epoch) -> NoReturn:
        """Run the epoch again from the last checkpoint, looking at every step, and raise with the first cause."""
        if self.state.epoch != number - 1:
            raise AssertionError("an epoch is explained before its checkpoint is written")
        self._build()
        self._begin(number)
        for step, batch in enumerate(self.sampler.epoch(number, self.device)):
            self._step(number, step, batch, check=True)
        self._check_step(number, len(self.sampler) - 1, {})
        bad = [name for name, finite in zip(epoch.names, epoch.values.isfinite().all(dim=0), strict=True) if not finite]
        raise DivergenceError(
            f"training stopped in epoch {number}: {', '.join(bad) or 'a parameter'} was not finite, which did not "
            "happen again when the epoch was repeated, so the device computes no repeatable results"
        )

    def _check_step(self, number: int, step: int, parts: dict[str, Tensor]) -> None:
        where = f"training stopped in epoch {number}, step {step + 1} of {len(self.sampler)}"
        causes = [f"the loss part {name!r} is {float(part)}" for name, part in parts.items() if not part.isfinite()]
        parameter = first_not_finite(self.model.named_parameters())
        gradient = first_not_finite((name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None)
        if parameter is not None:
            causes.append(f"the parameter {parameter!r} holds values that are not finite")
        elif gradient is not None:
            causes.append(f"the gradient of {gradient!r} holds values that are not finite")
        if causes:
            raise DivergenceError(f"{where}: {', and '.join(causes)}; {self._advice()}")

    def _advice(self) -> str:
        rate = self.config.training.learning_rate
        advice = f"try a lower learning rate (--set training.learning_rate={min(rate / 10, SOUND_RATE):g})"
        if self.config.training.gradient_clip is None:
            advice += " or clip the gradient (--set training.gradient_clip=1)"
        return advice


def build_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam over the model's parameter groups.

    The fused form is 5 to 7 times as fast as ``foreach`` on a CPU (1.7 M and 31 M parameters, 2 threads).
    """
    groups = [{"lr_scale": 1.0, **group} for group in model.parameter_groups()]  # type: ignore[operator]
    return torch.optim.Adam(groups, lr=learning_rate, fused=True)


def find_device(name: str) -> torch.device:
    """The torch device that ``training.device`` means.

    Raises:
        ValueError: a CUDA device was asked for that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"training.device is {name}, but torch finds {torch.cuda.device_count()} CUDA devices here")
    return device


def first_not_finite(tensors: Iterator[tuple[str, Tensor]] | Sequence[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds NaN or infinity."""
    for name, tensor in tensors:
        # A sum is cheaper than a mask of the tensor's size; it can overflow, so it only raises the suspicion.
        if not bool(tensor.detach().sum().isfinite()) and not bool(tensor.detach().isfinite().all()):
            return name
    return None


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Within the block, torch computes deterministically, with ``threads`` CPU threads (None: as many as it does)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to repeat itself
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _deterministic.fill_uninitialized_memory,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    _deterministic.fill_uninitialized_memory = False  # filling every new tensor with NaN costs time
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        _deterministic.fill_uninitialized_memory = before[3]
