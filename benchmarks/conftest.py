"""Options, scales and devices that the benchmarks share, and what their JSON says beyond pytest-benchmark's own.

A module names what it measures in ``OPERATION``; its tests take ``measure``, and ``scale`` and ``backend`` where they
have any. ``SCALES`` are the scales of the default run, ``QUICK_SCALES`` those with ``--quick``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import machine
import peers
import pytest
import scales
import torch
from measuring import Measure, anything
from pytest_benchmark.fixture import BenchmarkFixture

from crane.data import Dataset
from crane.training.environment import environment
from crane_kernels import Graph, dispatch

BESIDE = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "amazon-baby"
SCALES = ("baby", "sports", "clothing", "elec")
QUICK_SCALES = ("baby",)
GPU_BACKENDS = ("cuda", "triton")
NOT_RUN = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="one small scale and few rounds, in under a minute")
    parser.addoption(
        "--scale",
        action="append",
        choices=[*scales.SIZES, "all"],
        help="only this scale, may be given several times (default: up to elec, within five minutes)",
    )
    parser.addoption(
        "--data",
        default=os.environ.get("CRANE_AMAZON_BABY"),
        metavar="FOLDER",
        help="also measure what has real data on this data set (default: CRANE_AMAZON_BABY)",
    )
    parser.addoption("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scale" in metafunc.fixturenames:
        metafunc.parametrize("scale", _scales(metafunc), scope="session")
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backends(metafunc.module.OPERATION), scope="session")


def _scales(metafunc: pytest.Metafunc) -> list[str]:
    config = metafunc.config
    if config.getoption("--quick"):
        return list(getattr(metafunc.module, "QUICK_SCALES", QUICK_SCALES))
    chosen = config.getoption("--scale")
    found = list(chosen or getattr(metafunc.module, "SCALES", SCALES))
    if "all" in found:
        found = list(scales.SIZES)
    folder = _real_data(config)
    if folder is not None and getattr(metafunc.module, "REAL_DATA", False) and not chosen:
        found.append(folder.name)
    return found


def _real_data(config: pytest.Config) -> Path | None:
    given = config.getoption("--data")
    if given is not None:
        return Path(given)
    return BESIDE.resolve() if BESIDE.is_dir() else None


def _backends(operation: str) -> list[str]:
    """The CPU as dispatched, and every implementation for GPUs; for a whole model, the GPU as dispatched."""
    if operation not in dispatch.operations():
        return ["cpu", "cuda"]
    return ["cpu", *(name for name in dispatch.implementations(operation) if name in GPU_BACKENDS)]


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether to run on small data, a few rounds."""
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def not_compiled(scale: str, quick: bool, request: pytest.FixtureRequest) -> str | None:
    """Why torch.compile is no peer at this scale; None when it is one."""
    if quick:
        return peers.TOO_LONG
    return None if scale == peers.COMPILED_AT or request.config.getoption("--scale") else peers.ONE_SCALE


@pytest.fixture
def coo_left_out(graph: Graph, request: pytest.FixtureRequest) -> str | None:
    """Why products with COO tensors, which sort, are no peers of several layers; None when they are."""
    return peers.TOO_MANY if graph.nnz > peers.MANY_EDGES and not request.config.getoption("--scale") else None


@pytest.fixture
def dataset(scale: str, request: pytest.FixtureRequest) -> Dataset:
    """The data set of the scale."""
    return scales.dataset(scale, _folder(scale, request.config))


def _folder(scale: str, config: pytest.Config) -> Path | None:
    """Where the data of a scale are; None where they are generated."""
    return None if scale in (*scales.SIZES, "demo") else _real_data(config)


@pytest.fixture
def device(backend: str) -> str:
    """Where the backend computes."""
    return _device(backend)


def _device(backend: str) -> str:
    return "cpu" if backend == "cpu" else "cuda"


@pytest.fixture
def requested(backend: str) -> str | None:
    """The implementation to ask for: on the CPU, what is chosen by itself."""
    return None if backend == "cpu" else backend


@pytest.fixture
def graph(scale: str, device: str, request: pytest.FixtureRequest) -> Graph:
    """D^-1/2 A D^-1/2 over users and items; of real data, by the interactions that train."""
    return normalized_graph(scale, _folder(scale, request.config)).to(device)


@lru_cache(maxsize=1)
def normalized_graph(scale: str, folder: Path | None) -> Graph:
    if folder is None:
        size = scales.SIZES[scale]
        interacted = Graph.from_edges(*scales.interactions(scale), shape=(size.users, size.items))
    else:
        interacted = scales.dataset(scale, folder).graph("train")
    return interacted.bipartite().normalize("symmetric")


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every number is measured with the same threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, quick: bool) -> Measure:
    """Times ours and its peers; knows the operation, the scale and the backend of the test."""
    where = _where(request.node)
    return Measure(benchmark, _device(where["backend"]), quick, where)


def _where(item: pytest.Item) -> dict[str, str]:
    parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    module = getattr(item, "module", None)
    return {
        "operation": getattr(module, "OPERATION", item.path.stem.removeprefix("test_")),
        "scale": str(parameters.get("scale", "")),
        "backend": str(parameters.get("backend", "cpu")),
    }


@pytest.fixture
def compare(measure: Measure, benchmark: BenchmarkFixture, dataset: Dataset, quick: bool) -> Callable[..., None]:
    """Time ours against one baseline, turn by turn, and require a ratio of the medians."""

    def run(
        ours: Callable[[], object], peer: str, baseline: Callable[[], object], at_least: float, case: str, rounds: int
    ) -> None:
        rounds, size = 1 if quick else rounds, len(dataset.train)
        measure(ours, {peer: baseline}, size=size, unit="interactions", case=case, agree=anything, rounds=rounds)
        assert quick or benchmark.extra_info["peers"][peer]["ratio"] >= at_least

    return run


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _device(_where(item)["backend"]) == "cuda" and not torch.cuda.device_count():
        pytest.skip("no CUDA device")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        item.config.stash[NOT_RUN].append({"name": item.name, **_where(item), "reason": reason})


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["crane"] = environment() | {"threads": config.getoption("--threads")}
    devices = ["cpu", *(["cuda"] if torch.cuda.device_count() else [])]
    machine_info["limits"] = {d: vars(machine.limits(d, config.getoption("--quick"))) for d in devices}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["not_run"] = config.stash[NOT_RUN]
