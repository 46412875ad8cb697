"""Options and data that the benchmarks share."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from crane.data import DataConfig, Dataset, demo_dataset, load_dataset

THREADS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="small data and few rounds: whether the benchmarks run at all"
    )


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether to run on small data, a few rounds."""
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def dataset(quick: bool) -> Dataset:
    """Amazon Baby (``CRANE_AMAZON_BABY``, or beside the repository); the generated data set with ``--quick``."""
    if quick:
        return demo_dataset()
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "amazon-baby"
    path = Path(os.environ.get("CRANE_AMAZON_BABY", beside))
    if not path.is_dir():
        pytest.skip(f"amazon-baby is not at {path}: set CRANE_AMAZON_BABY")
    return load_dataset(DataConfig(path=str(path)))


@pytest.fixture(autouse=True)
def two_threads():
    """Every number is measured with the same threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compare(benchmark: BenchmarkFixture, quick: bool) -> Callable[..., None]:
    """Time ours against the baseline in one run, turn by turn, and report the ratio of the medians."""

    def run(baseline: Callable[[], object], ours: Callable[[], object], at_least: float, rounds: int = 5) -> None:
        seconds: list[float] = []

        def time_baseline() -> None:
            started = time.perf_counter()
            baseline()
            seconds.append(time.perf_counter() - started)

        benchmark.pedantic(ours, setup=time_baseline, rounds=1 if quick else rounds, warmup_rounds=0 if quick else 1)
        if benchmark.stats is None:  # --benchmark-disable
            return
        before, after = statistics.median(seconds), benchmark.stats.stats.median
        ratio = before / after
        benchmark.extra_info |= {"baseline_seconds": before, "seconds": after, "ratio": ratio, "at_least": at_least}
        benchmark.extra_info |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "quick": quick}
        print(f"\n{benchmark.name}: baseline {before:.3f} s, ours {after:.3f} s, {ratio:.1f}x (at least {at_least}x)")
        assert quick or ratio >= at_least

    return run
