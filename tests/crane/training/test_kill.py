"""A run that is killed continues as if nothing had happened."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crane.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Runs the crane command in forks of one process, which has imported everything already.
_COMMAND_IN_A_FORK = """
import os, random, signal, sys, time
from pathlib import Path
import torch._dynamo  # imported by the first optimiser
import crane.cli.train
import crane.training.report
from crane.cli import main
from crane.config import RunConfig
from crane.data import load_dataset

crane.training.report._write_curves = lambda *_: None  # drawn after the end, and slow

config, folder = sys.argv[1], Path(sys.argv[2])
load_dataset(RunConfig.load(Path(config)).data)  # imports more

def start(*arguments, prepare=lambda: None):
    process = os.fork()
    if process == 0:
        prepare()
        sys.stdout = open(os.devnull, "w")
        os._exit(main(["train", *arguments]))
    return process

def end(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

def command(run):
    return ("--resume", str(run)) if (run / "config.yaml").exists() else ("--config", config, "--output", str(run))
"""

_KILL_AT_RANDOM_MOMENTS = """
moments, run = random.Random(0), folder / "run"

def lines():
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0

for _ in range(6):
    done = lines()
    process = start(*command(run))
    while lines() <= done:  # the kill shall fall into the epochs after the first of this process
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.05))
    os.kill(process, signal.SIGKILL)
    assert end(process) == -signal.SIGKILL
assert end(start(*command(run))) == 0
"""

_KILL_BEFORE_EACH_RENAME = """
def dies_at(number):
    def prepare():
        rename, count = os.replace, 0
        def replace(source, target):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
        os.replace = replace
    return prepare

number, code = 0, None
while code != 0:
    number += 1
    run = folder / f"rename-{number:02d}"
    code = end(start(*command(run), prepare=dies_at(number)))
    assert code in (0, -signal.SIGKILL)
    if code != 0:
        assert end(start(*command(run))) == 0
"""


def drive(scenario: str, whole: Path, folder: Path) -> list[Path]:
    """Play a scenario with the configuration of the run ``whole``; returns the folders of the runs."""
    folder.mkdir()
    script = [sys.executable, "-P", "-c", _COMMAND_IN_A_FORK + scenario, str(whole / "config.yaml"), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(folder.iterdir())


def test_runs_killed_at_random_moments_continue_bit_for_bit(
    tmp_path: Path, make_trainer: Callable[..., Trainer], assert_same_run: Callable[[Path, Path], None]
) -> None:
    make_trainer(tmp_path / "whole", "training.epochs=30", "training.patience=30").fit()
    (run,) = drive(_KILL_AT_RANDOM_MOMENTS, tmp_path / "whole", tmp_path / "killed")
    assert_same_run(tmp_path / "whole", run)


def test_runs_killed_before_any_rename_continue_bit_for_bit(
    tmp_path: Path, make_trainer: Callable[..., Trainer], assert_same_run: Callable[[Path, Path], None]
) -> None:
    """A rename is the moment at which the state on disk changes, so this tries every state there is."""
    make_trainer(tmp_path / "whole", "training.epochs=2").fit()
    runs = drive(_KILL_BEFORE_EACH_RENAME, tmp_path / "whole", tmp_path / "killed")
    assert len(runs) > 10
    for run in runs:
        assert_same_run(tmp_path / "whole", run)
