"""The folder of a run.

::

    config.yaml        the resolved configuration
    environment.json   versions, platform, threads, the implementation that serves each operation
    metrics.jsonl      one line an epoch
    checkpoints/       see crane.training.checkpoint
    curves.png         loss and validation metric over the epochs
    report.md          what was trained on what, and how good it became
    export.safetensors what recommending needs, see crane.recommend
    tensorboard/       with training.tensorboard
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crane.config import RunConfig
from crane.files import TEMPORARY_SUFFIX, Lock, nearest_existing, write_text
from crane.training.checkpoint import Checkpoints
from crane.words import counted

RECORD = {"epoch", "loss", "parts", "learning_rate", "validation", "train_seconds", "evaluate_seconds"}  # of an epoch
SAFETENSORS_TEMPORARY = ".tmp??????"  # what safetensors writes before it renames


@contextmanager
def new_folder(path: Path, *, numbered: bool = False) -> Iterator[RunFolder]:
    """Make the folder of a run that the block creates; where the block fails, the folder is gone again.

    Args:
        path: the folder, which does not exist or is empty.
        numbered: a folder that exists is left to whom it belongs, and one with a number after its name is made.

    Raises:
        ValueError: what :meth:`RunFolder.check_new` refuses.
    """
    folder, made = _make(path, numbered)
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # somebody else has put something in it
            for new in made:
                new.rmdir()
        raise


def _make(path: Path, numbered: bool) -> tuple[RunFolder, list[Path]]:
    """The folder, and the folders that were made for it, innermost first."""
    candidate = path
    for number in itertools.count(2):
        made = [new for new in (candidate, *candidate.parents) if not new.exists()]
        if candidate in made or not numbered:
            folder = RunFolder(candidate)
            folder.check_new()
            with contextlib.suppress(FileExistsError):  # another process was faster
                _make_folder(candidate, exist_ok=not numbered)
                break
        candidate = path.with_name(f"{path.name}-{number}")
    return folder, made


def _make_folder(path: Path, *, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise ValueError(f"the output folder {path} cannot be made: {error.strerror}") from error


class RunFolder:
    """Paths and small files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.report = path / "report.md"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._claim: Lock | None = None

    def check_new(self) -> None:
        """Refuse a path that holds something already, besides what :meth:`create` leaves when the process dies in it.

        Raises:
            ValueError: the path is a file or a folder that is not empty, or cannot be made where it is.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"the output folder {self.path} is a file: name a new one")
        ancestor = nearest_existing(self.path)
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
            reason = "cannot be written to" if ancestor.is_dir() else "is a file"
            raise ValueError(f"the output folder {self.path} cannot be made: {ancestor} {reason}")
        leftovers = {self.environment.name, self.config.name + TEMPORARY_SUFFIX}
        leftovers.add(self.environment.name + TEMPORARY_SUFFIX)
        if self.path.is_dir() and any(entry.name not in leftovers for entry in self.path.iterdir()):
            raise ValueError(f"the output folder {self.path} is not empty: name a new one, or continue with --resume")

    def check_run(self) -> None:
        """Refuse a path that holds no run.

        Raises:
            ValueError: the path is no folder with a configuration.
        """
        if not self.path.is_dir():
            raise ValueError(f"the run folder {self.path} does not exist")
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not a run folder: it has no {self.config.name}")

    def create(self, config: RunConfig, environment: dict[str, Any]) -> None:
        """Make the folder and write configuration and environment.

        Raises:
            ValueError: what :meth:`check_new` refuses, or another process is making a run in the folder.
        """
        self.check_new()
        self.path.mkdir(parents=True, exist_ok=True)
        making = self._lock(self.path, "is making")
        try:
            self.check_new()  # again, for what another process did before the lock
            write_text(self.environment, json.dumps(environment, indent=2) + "\n")
            config.save(self.config)  # last: it is what makes the folder a run
        finally:
            making.release()

    def read_environment(self) -> dict[str, Any]:
        """What :meth:`create` wrote about the environment.

        Raises:
            ValueError: the file does not hold it.
        """
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
            kinds: dict[str, Any] = {"versions": dict, "processor": str, "instruction_set": str | None, "threads": int}
            kinds |= {"devices": list, "operations": dict}
            wrong = [name for name, kind in kinds.items() if not isinstance(content[name], kind)]
            if wrong:
                raise ValueError(f"{wrong[0]} is {content[wrong[0]]!r}")
            for name, choice in content["operations"].items():
                if not isinstance(choice, dict) or not choice.keys() >= {"implementation", "requested", "rejected"}:
                    raise ValueError(f"{name} is {choice!r}")
            return {name: content[name] for name in kinds}
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{self.environment} is damaged: {error!r}, expected what the run began on") from error

    def claim(self) -> None:
        """Keep others from training this run until :meth:`release`, or until this process ends.

        Raises:
            ValueError: another is training it.
        """
        if self._claim is None:  # by a file that is there as long as the run, and is never written again
            self._claim = self._lock(self.config, "is training")

    def release(self) -> None:
        """Let others train the run again."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _lock(self, path: Path, doing: str) -> Lock:
        try:
            return Lock(path)
        except BlockingIOError:
            raise ValueError(f"another process {doing} the run {self.path}: wait for it or end it first") from None

    def remove_leftovers(self) -> None:
        """Remove what a process leaves that was killed while it wrote."""
        for folder in (self.path, self.checkpoints.folder):
            for path in (*folder.glob("*" + TEMPORARY_SUFFIX), *folder.glob(SAFETENSORS_TEMPORARY)):
                path.unlink(missing_ok=True)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one epoch's line."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """The records of the first ``epochs`` epochs.

        Raises:
            ValueError: the file has fewer, or a line is damaged.
        """
        if epochs == 0:
            return []
        lines = self._metric_lines()
        if len(lines) < epochs:
            raise ValueError(f"{self.metrics}: found {len(lines)} lines, expected one for each of {epochs} epochs")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines[:epochs], start=1):
            record = _parsed(line)
            if not isinstance(record, dict) or record.get("epoch") != number or not record.keys() >= RECORD:
                raise ValueError(f"{self.metrics}, line {number}: expected the record of an epoch, found {line[:40]!r}")
            records.append(record)
        return records

    def check_no_epochs(self) -> None:
        """Refuse to begin again where epochs were trained: a process that dies in the first one leaves one line.

        Raises:
            ValueError: the metrics are there and the checkpoint is not.
        """
        epochs = len(self._metric_lines()) - 1
        if epochs > 0:
            raise ValueError(
                f"the run {self.path} has lost its checkpoint: {self.metrics.name} tells of {counted(epochs, 'epoch')} "
                "at least; put it back, or train a new run"
            )

    def _metric_lines(self) -> list[str]:
        if not self.metrics.exists():
            return []
        return self.metrics.read_text(encoding="utf-8", errors="backslashreplace").splitlines()

    def truncate_metrics(self, epochs: int) -> None:
        """Drop the lines past the first ``epochs``, which a killed process may have written, or written in part."""
        if self.metrics.exists():
            lines = self._metric_lines()[:epochs]
            write_text(self.metrics, "".join(line + "\n" for line in lines))


def _parsed(line: str) -> Any:
    """The JSON of a line; None where it is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
