"""``crane train``."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from rich.console import Console

from crane import mmrec
from crane.cli.errors import UserError, user_errors
from crane.cli.tables import metrics_table
from crane.config import RunConfig, merge, read_yaml
from crane.console import say
from crane.data import load_dataset
from crane.data.config import DEMO
from crane.training.environment import changes, environment, operations
from crane.training.folder import RunFolder, new_folder
from crane.training.progress import console_reporter
from crane.training.report import write_report
from crane.training.run import default_folder
from crane.training.trainer import DivergenceError, Trainer, reproducible
from crane.words import counted
from crane_kernels import tune_memory
from crane_kernels.dispatch import UnavailableError


class _Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; ``code`` is the exit code that says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class _Signals:
    """Within the block SIGTERM, by which batch systems end a job, interrupts as Ctrl-C does.

    An exception that a handler raises can be lost in the library that it strikes (numpy's while it is imported, a
    callback of the garbage collector), so the signal is kept, and :meth:`check` raises it again.
    """

    def __init__(self) -> None:
        self.came: int | None = None

    def _stop(self, number: int, frame: FrameType | None) -> NoReturn:
        self.came = number
        raise _Interrupted(number)

    def check(self) -> None:
        """Raise what has come."""
        if self.came is not None:
            raise _Interrupted(self.came)

    def __enter__(self) -> Self:
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if self.before[signal.SIGINT] is not signal.default_int_handler:  # a shell's background job ignores it
            del self.before[signal.SIGINT]
        for number in self.before:
            signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def run(arguments: argparse.Namespace) -> int:
    """Train, or continue, a run; returns the exit code."""
    console = Console()
    with user_errors():
        operations()  # refuses those that CRANE_IMPLEMENTATION asks for and that cannot run
    tune_memory()
    try:
        with _Signals() as signals:
            return _train(arguments, console, signals.check)
    except _Interrupted as stop:
        print("interrupted", file=sys.stderr)
        return stop.code


def _train(arguments: argparse.Namespace, console: Console, check: Callable[[], None]) -> int:
    make = _new if arguments.resume is None else _resumed
    trainer = make(arguments, console, check)
    folder = trainer.folder
    say(console, trainer.dataset.describe())
    say(console, _headline(trainer))
    try:
        state = trainer.fit()
        write_report(folder, trainer.config, trainer.dataset, state)
    except KeyboardInterrupt as stop:  # or the SIGINT handler of who has called this
        kept = folder.checkpoints.load_state()  # an epoch may have been written and not yet been noted
        done = 0 if kept is None else kept.epoch
        message = f"interrupted, {counted(done, 'epoch')} kept; continue with: crane train --resume {folder.path}"
        print(message, file=sys.stderr)
        return stop.code if isinstance(stop, _Interrupted) else 130
    except DivergenceError as error:
        print(f"crane train: {error}", file=sys.stderr)
        return 1
    except (OSError, UnavailableError) as error:
        print(f"crane train: {error}; continue with: crane train --resume {folder.path}", file=sys.stderr)
        return 1
    _print_result(console, trainer)
    return 0


def _new(arguments: argparse.Namespace, console: Console, check: Callable[[], None]) -> Trainer:
    """A trainer in a new run folder, of which nothing stays if something is refused."""
    with user_errors():
        config = _configuration(arguments)
        path = default_folder(config) if arguments.output is None else Path(arguments.output)
        with new_folder(path, numbered=arguments.output is None) as folder:
            dataset = load_dataset(config.data)
            trainer = Trainer(config, dataset, folder, console_reporter(console), check)
            with reproducible(config.training.threads):
                folder.create(config, environment())
                folder.claim()
    return trainer


def _resumed(arguments: argparse.Namespace, console: Console, check: Callable[[], None]) -> Trainer:
    """A trainer that continues where the run's last checkpoint is, with as many threads as the run began with."""
    names = ("data", "model", "config", "mmrec", "seed", "output")
    given = [f"--{name}" for name in names if getattr(arguments, name) is not None]
    given += ["--set"] if arguments.settings else []
    if given:
        raise UserError(f"--resume continues a run with its own settings, so {given[0]} cannot be given with it")
    with user_errors():
        folder = RunFolder(Path(arguments.resume))
        folder.check_run()
        folder.claim()
        config = RunConfig.load(folder.config)
        began = folder.read_environment()  # the report at the end needs it too
        threads = arguments.threads
        if threads is None:
            threads = config.training.threads or began["threads"]
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, threads=threads))
        changed = changes(began, environment() | {"threads": threads})
        if changed:
            print(f"not as the run began, so not bit for bit as it would end: {'; '.join(changed)}", file=sys.stderr)
        dataset = load_dataset(config.data)
        return Trainer(config, dataset, folder, console_reporter(console), check)


def _configuration(arguments: argparse.Namespace) -> RunConfig:
    """The file's settings, under the arguments, under ``--set``; the data's path made absolute."""
    given = (
        ("model", arguments.model),
        ("seed", arguments.seed),
        ("data.path", arguments.data),
        ("training.threads", arguments.threads),
    )
    settings = [f"{key}={value}" for key, value in given if value is not None]
    named = next((s for s in arguments.settings if s.partition("=")[0].strip() in ("model", "model.name")), None)
    if arguments.model is not None and named is not None:
        raise ValueError(f"--model {arguments.model} and --set {named} both name the model, expected one of them")
    settings += arguments.settings
    if arguments.mmrec is not None:
        mapping = _of_mmrec(arguments, settings)
        settings = [setting for setting in settings if setting != f"data.path={arguments.data}"]
    else:
        mapping = {} if arguments.config is None else read_yaml(Path(arguments.config))
    mapping = merge(mapping, settings)
    data = mapping.get("data")
    if data is None or (isinstance(data, dict) and "path" not in data):
        raise ValueError("there is no data set to train on: give --data demo, or --data and the path of your own")
    config = RunConfig.from_mapping(mapping)
    if config.data.path == DEMO:
        return config
    path = str(Path(config.data.path).expanduser().resolve())
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _of_mmrec(arguments: argparse.Namespace, settings: list[str]) -> dict[str, Any]:
    """The settings in MMRec's files; says which of them have no meaning here."""
    if arguments.config is not None:
        raise ValueError("--mmrec and --config both name files of settings, expected one of them")
    if any(setting.partition("=")[0].strip() == "data.path" for setting in arguments.settings):
        raise ValueError("--mmrec finds the data by --data, so --set data.path cannot be given with it")
    names = frozenset(setting.partition("=")[0].strip() for setting in settings)
    found = mmrec.read(Path(arguments.mmrec), arguments.model or "crane", arguments.data, names)
    if found.unused:
        print(f"settings of MMRec without a meaning here: {', '.join(found.unused)}", file=sys.stderr)
    return found.mapping


def _headline(trainer: Trainer) -> str:
    weights = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    epoch = trainer.state.epoch
    text = (
        f"training {trainer.config.model} ({weights:,} weights) on {trainer.device}, "
        f"{'from the start' if epoch == 0 else f'after epoch {epoch}'}; run folder {trainer.folder.path}"
    )
    if not len(trainer.dataset.validation):
        text += f"\nno validation interactions: all {trainer.config.training.epochs} epochs, the last one is kept"
    return text


def _print_result(console: Console, trainer: Trainer) -> None:
    state, evaluation = trainer.state, trainer.config.evaluation
    text = f"best epoch {state.best_epoch} of {state.epoch} ({state.finished}); see {trainer.folder.report}"
    say(console, text)
    if state.test:
        console.print(metrics_table(evaluation, state.test, title="test"))
