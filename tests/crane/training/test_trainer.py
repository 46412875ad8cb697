import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crane.config import RunConfig
from crane.data import Dataset, Interactions
from crane.evaluation import evaluate_split
from crane.models import MODELS, LightGCN, Loss
from crane.training.folder import RunFolder
from crane.training.progress import Reporter, SilentReporter
from crane.training.report import write_report
from crane.training.run import fingerprint, load_run
from crane.training.trainer import DivergenceError, Trainer, build_optimizer, find_device, first_not_finite

MakeTrainer = Callable[..., Trainer]
Timeless = Callable[[Path], list[dict[str, Any]]]
SameRun = Callable[[Path, Path], None]


def test_training_learns_the_planted_groups(tmp_path: Path, make_trainer: MakeTrainer, timeless: Timeless) -> None:
    trainer = make_trainer(tmp_path / "run", "training.epochs=40", "training.learning_rate=0.05")
    trainer.fit()
    losses = [line["loss"] for line in timeless(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


def test_state_and_metrics_agree(tmp_path: Path, make_trainer: MakeTrainer, timeless: Timeless) -> None:
    state = make_trainer(tmp_path / "run", "training.epochs=6").fit()
    lines = timeless(tmp_path / "run")
    values = [line["validation"]["recall@20"] for line in lines]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert state.best_value == max(values)
    assert state.best_epoch == values.index(max(values)) + 1
    assert state.finished == "all epochs done"
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line["parts"].values()))


def test_test_metrics_are_those_of_the_best_weights(
    tmp_path: Path, make_trainer: MakeTrainer, tiny: Dataset, timeless: Timeless
) -> None:
    state = make_trainer(tmp_path / "run").fit()
    run = load_run(tmp_path / "run")
    assert state.test == evaluate_split(tiny, "test", run.user, run.item)
    best = timeless(tmp_path / "run")[state.best_epoch - 1]["validation"]
    assert best == evaluate_split(tiny, "validation", run.user, run.item)
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.save_state(
        dataclasses.replace(state, test=None)
    )  # as if it had been interrupted after its last epoch
    (tmp_path / "run" / "export.safetensors").unlink()
    unfinished = load_run(tmp_path / "run")
    assert torch.equal(unfinished.user, run.user)
    assert torch.equal(unfinished.item, run.item)


def test_a_finished_run_is_loaded_without_its_model(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(tmp_path / "run", "training.epochs=1").fit()
    monkeypatch.setattr("crane.training.run.build_model", lambda *_: pytest.fail("the model is built"))
    assert len(load_run(tmp_path / "run").user) == 60


def test_the_test_split_is_looked_at_once(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def spy(dataset: Dataset, split: str, *arguments: Any, **settings: Any) -> dict[str, float]:
        looked.append(split)
        return evaluate_split(dataset, split, *arguments, **settings)

    monkeypatch.setattr("crane.training.trainer.evaluate_split", spy)
    make_trainer(tmp_path / "run").fit()
    make_trainer(tmp_path / "run").fit()
    assert looked == ["validation"] * 4 + ["test"]


def test_early_stopping_counts_evaluations(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.3, 0.3, 0.2999999, 0.1, 0.2])
    measure = Trainer._measure

    def scripted(self: Trainer, split: str, user: Tensor, item: Tensor) -> dict[str, float]:
        measured = measure(self, split, user, item)
        return {**measured, "recall@20": next(values)} if split == "validation" else measured

    monkeypatch.setattr(Trainer, "_measure", scripted)
    state = make_trainer(tmp_path / "run", "training.epochs=50", "training.patience=3").fit()
    assert (state.epoch, state.best_epoch, state.best_value) == (5, 2, 0.3)
    assert state.finished == "3 evaluations without a new best"


def test_without_patience_all_epochs_are_trained(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.3, *[0.2] * 4])
    measure = Trainer._measure

    def scripted(self: Trainer, split: str, user: Tensor, item: Tensor) -> dict[str, float]:
        measured = measure(self, split, user, item)
        return {**measured, "recall@20": next(values)} if split == "validation" else measured

    monkeypatch.setattr(Trainer, "_measure", scripted)
    state = make_trainer(tmp_path / "run", "training.epochs=6", "training.patience=null").fit()
    assert (state.epoch, state.best_epoch, state.finished) == (6, 2, "all epochs done")


def test_each_step_gets_the_learning_rate_of_its_place_in_the_schedule(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps an epoch: warm-up counts the step itself, decay what came before it, and each group has its scale."""
    settings = ["schedule=cosine", "warmup_epochs=0.5", "learning_rate=0.1", "epochs=2", "batch_size=128"]
    trainer = make_trainer(tmp_path / "run", *(f"training.{setting}" for setting in settings))
    assert len(trainer.sampler) == 4
    trainer.optimizer.param_groups[0]["lr_scale"] = 0.5
    rates: list[float] = []
    step = trainer.optimizer.step
    monkeypatch.setattr(
        trainer.optimizer, "step", lambda: (rates.append(trainer.optimizer.param_groups[0]["lr"]), step())
    )
    trainer.fit()
    cosine = [0.5 * (1 + np.cos(np.pi * k / 8)) for k in range(8)]
    expected = [0.05 * min(1, (k + 1) / 2) * factor for k, factor in enumerate(cosine)]
    assert rates == pytest.approx(expected)
    recorded = [record["learning_rate"] for record in trainer.folder.read_metrics(2)]
    assert recorded == pytest.approx([expected[3] / 0.5, expected[7] / 0.5])  # of an epoch's last step


def test_eval_every_leaves_epochs_out_but_not_the_last(
    tmp_path: Path, make_trainer: MakeTrainer, timeless: Timeless
) -> None:
    make_trainer(tmp_path / "run", "training.epochs=5", "training.eval_every=2").fit()
    assert [line["validation"] is not None for line in timeless(tmp_path / "run")] == [False, True, False, True, True]


def test_runs_repeat_bit_for_bit(tmp_path: Path, make_trainer: MakeTrainer, assert_same_run: SameRun) -> None:
    make_trainer(tmp_path / "a").fit()
    make_trainer(tmp_path / "b").fit()
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_another_seed_gives_another_run(tmp_path: Path, make_trainer: MakeTrainer, timeless: Timeless) -> None:
    make_trainer(tmp_path / "a").fit()
    make_trainer(tmp_path / "b", "seed=1").fit()
    assert timeless(tmp_path / "a")[0]["loss"] != timeless(tmp_path / "b")[0]["loss"]


class Interrupt(SilentReporter):
    """Interrupts like Ctrl-C, at a step of an epoch."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, loss: Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_an_interrupted_run_continues_bit_for_bit(
    tmp_path: Path, make_trainer: MakeTrainer, steps: int, assert_same_run: SameRun
) -> None:
    settings = ("training.schedule=cosine", "training.warmup_epochs=1.5", "training.gradient_clip=0.5")
    make_trainer(tmp_path / "whole", *settings).fit()
    trainer = make_trainer(tmp_path / "parts", *settings)
    trainer.reporter = Interrupt(steps)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    make_trainer(tmp_path / "parts", *settings).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", ["crane", "freedom", "vbpr"])
def test_every_model_continues_bit_for_bit_with_two_threads(
    tmp_path: Path, tiny: Dataset, name: str, assert_same_run: SameRun
) -> None:
    features = {
        m: np.random.default_rng(0).normal(size=(tiny.n_items, 6)).astype(np.float32) for m in ("image", "text")
    }
    dataset = dataclasses.replace(tiny, features=features)
    training = {"epochs": 3, "batch_size": 128, "threads": 2, "patience": 3, "eval_every": 1}
    config = RunConfig.from_mapping({"model": {"name": name, "dim": 8}, "training": training})

    def trainer(folder: str, reporter: Reporter | None = None) -> Trainer:
        run = RunFolder(tmp_path / folder)
        if not run.config.exists():
            run.create(config, {})
        return Trainer(config, dataset, run, reporter)

    trainer("whole").fit()
    interrupted = trainer("parts", Interrupt(6))
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    assert trainer("parts").fit().epoch == 3
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_torn_last_line_of_metrics_is_dropped(tmp_path: Path, make_trainer: MakeTrainer, timeless: Timeless) -> None:
    trainer = make_trainer(tmp_path / "run")
    trainer.reporter = Interrupt(9)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "los')
    make_trainer(tmp_path / "run").fit()
    assert [line["epoch"] for line in timeless(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:1], r"metrics\.jsonl: found 1 lines, expected one for each of 2 epochs"),
        (lambda lines: ["{", *lines[1:]], r"metrics\.jsonl, line 1: expected the record of an epoch, found '\{'"),
        (lambda lines: ["{}", *lines[1:]], r"metrics\.jsonl, line 1: expected the record of an epoch, found '\{\}'"),
        (lambda lines: lines[::-1], r"metrics\.jsonl, line 1: expected the record of an epoch, found "),
        (lambda _: [], r"metrics\.jsonl: found 0 lines"),
    ],
)
def test_damaged_metrics_are_refused_before_training(
    tmp_path: Path, make_trainer: MakeTrainer, change: Callable[[list[str]], list[str]], message: str
) -> None:
    trainer = make_trainer(tmp_path / "run")
    trainer.reporter = Interrupt(9)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in change(metrics.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path / "run")


def test_a_run_that_is_being_trained_is_refused(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tmp_path / "run")
    other = RunFolder(tmp_path / "run")
    other.claim()
    with pytest.raises(ValueError, match=r"another process is training the run .*run: wait for it or end it first"):
        trainer.fit()
    assert not trainer.folder.metrics.exists()
    other.release()
    assert trainer.fit().epoch == 4
    other.claim()
    del other
    RunFolder(tmp_path / "run").claim()


def test_files_half_written_when_killed_are_removed(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    left = [tmp_path / "run" / name for name in ("curves.png.partial", ".tmpAb12Cd", "checkpoints/.tmpTkZFrX")]
    for path in left:
        path.write_text("half")
    trainer.fit()
    assert not any(path.exists() for path in left)


class Random(LightGCN):
    """Uses both kinds of randomness that a model has in training."""

    def begin_epoch(self, generator: np.random.Generator) -> None:
        self.scale = float(generator.random())

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        noise = nn.functional.dropout(torch.ones(()), 0.5)
        loss = super().loss(users, positives, negatives)
        return Loss(loss.total * noise * self.scale, loss.parts)


def test_a_models_own_randomness_repeats_when_continued(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, assert_same_run: SameRun
) -> None:
    monkeypatch.setitem(MODELS, "random", Random)
    make_trainer(tmp_path / "whole", "model=random").fit()
    trainer = make_trainer(tmp_path / "parts", "model=random")
    trainer.reporter = Interrupt(9)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    torch.manual_seed(99)
    make_trainer(tmp_path / "parts", "model=random").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


class Breaking(LightGCN):
    """Makes something not finite in one batch."""

    what = "loss"
    batch: Tensor | None = None  # the users of the batch that breaks

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
        loss = super().loss(users, positives, negatives)
        if self.batch is None or not torch.equal(users, self.batch):
            return loss
        if self.what == "gradient":
            zero = (self.user_embedding[0] * 0.0).sum()
            return Loss(loss.total + zero.sqrt(), loss.parts)
        bad = self.user_embedding.sum() * float("inf")
        return Loss(loss.total + bad, {**loss.parts, "l2": bad.detach()})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", r"epoch 2, step 2 of 4: the loss part 'l2' is -?inf, and the gradient of 'user_embedding' holds"),
        ("gradient", r"epoch 2, step 2 of 4: the gradient of 'user_embedding' holds values that are not finite; try"),
    ],
)
def test_a_loss_that_is_not_finite_stops_with_the_cause(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, what: str, message: str
) -> None:
    monkeypatch.setitem(MODELS, "breaking", Breaking)
    monkeypatch.setattr(Breaking, "what", what)
    trainer = make_trainer(tmp_path / "run", "model=breaking")
    batches = list(trainer.sampler.epoch(2))
    monkeypatch.setattr(Breaking, "batch", batches[1][0])
    with pytest.raises(DivergenceError, match=message) as caught:
        trainer.fit()
    assert "--set training.learning_rate=0.001" in str(caught.value)
    state = RunFolder(tmp_path / "run").checkpoints.load_state()
    assert state is not None
    assert state.epoch == 1


def test_parameters_that_overflow_in_the_last_step_are_found(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run", "training.learning_rate=1e38", "training.batch_size=100000")
    monkeypatch.setattr("crane.training.trainer.learning_rate_factor", lambda *_: 1e10)
    with pytest.raises(DivergenceError, match=r"epoch 1, step 1 of 1: the parameter '\w+_embedding' holds"):
        trainer.fit()


def test_weights_whose_embeddings_overflow_are_a_divergence(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run")
    embeddings = trainer.model.embeddings()
    monkeypatch.setattr(trainer.model, "embeddings", lambda: (embeddings[0], embeddings[1] * float("inf")))
    with pytest.raises(DivergenceError, match=r"epoch 1: the final embeddings diverged \(item: row 0 is not finite"):
        trainer.fit()
    monkeypatch.setattr(trainer.model, "embeddings", lambda: tuple(part.clamp(min=1) * 1e30 for part in embeddings))
    with pytest.raises(DivergenceError, match=r"epoch 1: the final .* dot products can reach .*; try a lower"):
        trainer.fit()


def test_first_not_finite_is_not_misled_by_a_sum_that_overflows() -> None:
    large = torch.full((4,), 3e38)
    assert first_not_finite([("large", large)]) is None
    assert first_not_finite([("large", large), ("bad", torch.tensor([1.0, float("nan")]))]) == "bad"


def test_groups_have_their_own_learning_rate_and_weight_decay(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Grouped(LightGCN):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [
                {"params": [self.user_embedding]},
                {"params": [self.item_embedding], "lr_scale": 0.1, "weight_decay": 0.5},
            ]

    monkeypatch.setitem(MODELS, "grouped", Grouped)
    trainer = make_trainer(tmp_path / "run", "model=grouped", "training.epochs=1")
    trainer.fit()
    rates = [(group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups]
    assert rates == [(pytest.approx(0.01), 0), (pytest.approx(0.001), 0.5)]


def test_optimizer_takes_one_step_of_adam() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": [self.weight]}]

    model = One()
    optimizer = build_optimizer(model, 0.1)  # type: ignore[arg-type]
    model.weight.square().sum().backward()
    optimizer.step()
    assert torch.allclose(model.weight, torch.tensor([0.9, -1.9]))


def test_process_wide_settings_are_restored(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    torch.set_num_threads(2)
    try:
        make_trainer(tmp_path / "run", "training.epochs=1").fit()
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(1)


def test_a_missing_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"training\.device is cuda:3, but torch finds 0 CUDA devices"):
        find_device("cuda:3")


def test_missing_tensorboard_is_refused(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="TensorBoard is not installed"):
        make_trainer(tmp_path / "run", "training.tensorboard=true")


def test_tensorboard_gets_every_epoch(tmp_path: Path, make_trainer: MakeTrainer, timeless: Timeless) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_trainer(tmp_path / "run", "training.tensorboard=true").fit()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/recall@20")] == [1, 2, 3, 4]
    written = [event.value for event in events.Scalars("loss/total")]
    assert written == pytest.approx([line["loss"] for line in timeless(tmp_path / "run")])


def test_a_data_set_without_validation_is_refused(tmp_path: Path, make_trainer: MakeTrainer, tiny: Dataset) -> None:
    nothing = Interactions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=r"has no validation interactions.*--set training\.patience=null"):
        make_trainer(tmp_path / "run", dataset=dataclasses.replace(tiny, validation=nothing))


def test_without_validation_and_patience_the_last_epoch_is_kept(
    tmp_path: Path, make_trainer: MakeTrainer, tiny: Dataset, timeless: Timeless
) -> None:
    nothing = Interactions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    blind = dataclasses.replace(tiny, validation=nothing)
    trainer = make_trainer(tmp_path / "run", "training.patience=null", dataset=blind)
    state = trainer.fit()
    assert (state.epoch, state.best_epoch, state.best_value) == (4, 4, None)
    assert state.test == evaluate_split(tiny, "test", *trainer.model.embeddings())
    assert [line["validation"] for line in timeless(tmp_path / "run")] == [None] * 4
    write_report(trainer.folder, trainer.config, blind, state)
    assert "Best epoch: 4 of 4 trained (all epochs done)." in trainer.folder.report.read_text()


def test_a_data_set_without_test_items_trains(tmp_path: Path, make_trainer: MakeTrainer, tiny: Dataset) -> None:
    nothing = Interactions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    state = make_trainer(tmp_path / "run", dataset=dataclasses.replace(tiny, test=nothing)).fit()
    assert state.test == {}


def test_continuing_on_changed_data_is_refused(tmp_path: Path, make_trainer: MakeTrainer, tiny: Dataset) -> None:
    make_trainer(tmp_path / "run").fit()
    changed = dataclasses.replace(tiny, test=tiny.validation)
    with pytest.raises(ValueError, match=r"the data set .* has changed"):
        make_trainer(tmp_path / "run", dataset=changed)


def test_fingerprint_sees_features_and_ids(tiny: Dataset) -> None:
    features = {"image": np.zeros((tiny.n_items, 2), np.float32)}
    other = {"image": np.full((tiny.n_items, 2), 1e-30, np.float32)}
    prints = {
        fingerprint(tiny),
        fingerprint(dataclasses.replace(tiny, features=features)),
        fingerprint(dataclasses.replace(tiny, features=other)),
        fingerprint(dataclasses.replace(tiny, item_ids=tiny.item_ids[::-1])),
    }
    assert len(prints) == 4


def test_fingerprint_sees_where_splits_begin_and_what_ids_are() -> None:
    def made(train: list[int], validation: list[int], ids: list[object]) -> str:
        one, two, none = (Interactions(np.zeros_like(part), np.array(part)) for part in (train, validation, []))
        return fingerprint(Dataset("d", np.array([0]), np.array(ids), one, two, none))

    assert len({made([0, 0], [], [7]), made([0], [0], [7]), made([0], [0], ["7"])}) == 3


def test_a_run_folder_has_all_its_files(tmp_path: Path, make_trainer: MakeTrainer, tiny: Dataset) -> None:
    trainer = make_trainer(tmp_path / "run")
    state = trainer.fit()
    write_report(trainer.folder, trainer.config, tiny, state)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    expected = "checkpoints config.yaml curves.png environment.json export.safetensors metrics.jsonl report.md"
    assert names == set(expected.split())
    assert RunConfig.load(tmp_path / "run" / "config.yaml") == trainer.config
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"Best epoch: {state.best_epoch} of 4 trained" in report
    assert f"{(state.test or {})['recall@20']:.4f}" in report
    assert "| spmm |" in report
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["operations"]["propagate"]["implementation"] in ("cpp", "reference")


def test_a_run_without_an_evaluated_epoch_cannot_be_loaded(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    make_trainer(tmp_path / "run")
    with pytest.raises(ValueError, match="has no evaluated epoch yet: continue it with crane train --resume"):
        load_run(tmp_path / "run")
