"""What the benchmarks take for the time of a call."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "benchmarks")
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
