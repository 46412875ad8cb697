"""What the benchmarks take for the time of a call."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("measuring")


def test_tidying_up_before_a_call_is_no_part_of_its_time(
    measuring: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else fast calls in a process that holds much are taken for slow ones, and timed once a turn, with cold caches."""

    def peak(run: Callable[[], Any], device: str) -> tuple[Any, int]:
        time.sleep(0.2)
        return run(), 3

    monkeypatch.setattr(measuring.memory, "peak", peak)
    result, held, seconds = measuring.Measure(None, "cpu", False, False, {})._peak(lambda: 7)
    assert (result, held) == (7, 3)
    assert seconds < 0.1


def run_benchmarks(*options: str, kind: str = "--quick", **environment: str) -> subprocess.CompletedProcess[str]:
    pytest_alone = [sys.executable, "-P", "-m", "pytest", "-p", "no:xdist"]
    command = [*pytest_alone, "benchmarks", "--benchmark-only", kind, *options]
    # pytest-benchmark takes a worker of pytest-xdist, where these tests may run, for its own.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)


def test_a_missing_folder_of_data_is_said_at_once() -> None:
    pytest.importorskip("pytest_benchmark")
    done = run_benchmarks("--data", "no/such/folder")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--data: found 'no/such/folder', which is no folder" in done.stderr


@pytest.mark.parametrize(
    ("interactions", "message"),
    [("user,item\n1,2,3\n", "interactions.csv"), (None, "a folder without interactions")],
)
def test_a_broken_data_set_is_said_at_once(tmp_path: Path, interactions: str | None, message: str) -> None:
    pytest.importorskip("pytest_benchmark")
    if interactions is not None:
        (tmp_path / "interactions.csv").write_text(interactions)
    done = run_benchmarks("--data", str(tmp_path), kind="--scale=data")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert "ERROR: --data: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_real_data_in_a_folder_with_the_name_of_a_scale_are_measured(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    folder = tmp_path / "baby"
    folder.mkdir()
    pairs = [f"u{user},i{(user + step) % 9}" for user in range(30) for step in (0, 2, 5)]
    (folder / "interactions.csv").write_text("\n".join(["user,item", *pairs]) + "\n")
    results = tmp_path / "results.json"
    options = ("-k", "rows_of_a_batch", "--benchmark-json", str(results))
    done = run_benchmarks("--data", os.path.relpath(folder, ROOT), *options, kind="--scale=data")
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(results.read_text())["benchmarks"]
    assert benchmark["extra_info"]["scale"] == "baby-data"
    assert benchmark["extra_info"]["size"] <= 2 * len(pairs)


def test_results_of_an_interrupted_run_say_so(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "interrupting.py").write_text(
        "calls = []\n"
        "def pytest_runtest_call(item):\n"
        "    calls.append(item)\n"
        "    if len(calls) == 2: raise KeyboardInterrupt\n"
    )
    results = tmp_path / "results.json"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = ("-k", "bpr_loss and cpu", "--benchmark-json", str(results), "-p", "interrupting")
    done = run_benchmarks(*options, PYTHONPATH=path)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    document = json.loads(results.read_text())
    assert len(document["benchmarks"]) == 1
    assert document["interrupted"] is True
