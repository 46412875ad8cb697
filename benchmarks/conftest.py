"""Options, scales and devices that the benchmarks share, and what their JSON says beyond pytest-benchmark's own.

A module names what it measures in ``OPERATION``; its tests take ``measure``, and ``scale`` and ``backend`` where they
have any. ``SCALES`` are the scales of the default run, ``QUICK_SCALES`` those with ``--quick``; ``REAL_DATA`` says that
it measures real data too, where there are any, in the place of its only scale or beside several; ``NOT_AT_LARGEST``
words in the names of tests that would take hours at the largest scale.

Without ``--scale`` a run leaves out what would make it longer than five minutes.
"""

from __future__ import annotations

import gc
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

from crane.cli.errors import sentence
from crane.data import Dataset
from crane.training.environment import environment
from crane_kernels import Graph, dispatch, tune_memory

BESIDE = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "amazon-baby"
SCALES = ("baby", "sports", "elec")
QUICK_SCALES = ("baby",)
GPU_BACKENDS = ("cuda", "triton")
REAL = "data"  # the scale that --data gives
LARGEST = "large"
GENERATED = (*scales.SIZES, "demo")
WITH_FORWARD = ("spmm",)  # what is measured forward alone, too, by default
NOT_RUN = pytest.StashKey[list[dict[str, str]]]()
INTERRUPTED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="one small scale and few rounds, in about a minute")
    parser.addoption(
        "--scale",
        action="append",
        choices=[*scales.SIZES, REAL, "all"],
        help="this scale and nothing of it left out, but of the largest what takes hours; may be given several times "
        "(default: up to elec, in five minutes)",
    )
    parser.addoption(
        "--data",
        default=os.environ.get("CRANE_AMAZON_BABY"),
        metavar="FOLDER",
        help="also measure what has real data on this data set, but with --quick (default: CRANE_AMAZON_BABY)",
    )
    parser.addoption("--hold", action="store_true", help="fail where a ratio is below what the benchmark promises")
    parser.addoption("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = []
    config.stash[INTERRUPTED] = False
    folder = config.getoption("--data")
    if folder is not None and not Path(folder).is_dir():
        raise pytest.UsageError(f"--data: found {folder!r}, which is no folder, expected one with a data set")
    # Else chance has a say in who pays for clearing pages. Huge ones take long to clear, when malloc needs new ones.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "0")
    tune_memory()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scale" in metafunc.fixturenames:
        metafunc.parametrize("scale", _scales(metafunc), scope="session")
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backends(metafunc.module.OPERATION), scope="session")


def _scales(metafunc: pytest.Metafunc) -> list[str]:
    config = metafunc.config
    if config.getoption("--quick"):
        return list(getattr(metafunc.module, "QUICK_SCALES", QUICK_SCALES))
    folder = _real_data(config) if getattr(metafunc.module, "REAL_DATA", False) else None
    real = [] if folder is None else [_name_of(folder)]
    chosen = config.getoption("--scale")
    if chosen:
        names = [*scales.SIZES, REAL] if "all" in chosen else chosen
        return [name for name in names if name != REAL] + (real if REAL in names else [])
    found = list(getattr(metafunc.module, "SCALES", SCALES))
    return real if real and len(found) == 1 else found + real


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """By default, operations are measured as training uses them, forward and backward."""
    if config.getoption("--quick") or config.getoption("--scale"):
        return
    left_out = [item for item in items if _forward_alone(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    _read_real_data(session)
    # What was imported stays: the garbage collections between measurements need not look at it.
    gc.collect()
    gc.freeze()


def _read_real_data(session: pytest.Session) -> None:
    """What is wrong with real data is said once, before anything is measured."""
    if session.config.option.collectonly:
        return
    for scale in sorted({_where(item)["scale"] for item in session.items} - {""}):
        folder = _folder(scale, session.config)
        if folder is not None:
            try:
                scales.dataset(scale, folder)
            except (ValueError, TypeError, OSError) as error:
                raise pytest.UsageError(f"--data: {sentence(error)}") from error


def _forward_alone(item: pytest.Item) -> bool:
    case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
    return case == peers.FORWARD and item.module.OPERATION not in WITH_FORWARD


def _real_data(config: pytest.Config) -> Path | None:
    given = config.getoption("--data")
    if given is not None:
        return Path(os.path.abspath(given))  # a folder called demo is no demo, and one called . has a name
    return BESIDE.resolve() if BESIDE.is_dir() else None


def _name_of(folder: Path) -> str:
    """The scale of real data: the folder's name, but not one that a generated scale has."""
    name = folder.name
    return f"{name}-data" if name in GENERATED else name


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
def in_full(request: pytest.FixtureRequest) -> bool:
    """Whether to leave nothing out, however long it takes: a scale was named, and not the largest."""
    return bool(request.config.getoption("--scale")) and _where(request.node)["scale"] != LARGEST


@pytest.fixture
def not_compiled(scale: str, quick: bool, in_full: bool) -> str | None:
    """Why torch.compile is no peer at this scale; None when it is one."""
    if quick:
        return peers.TOO_LONG
    return None if scale == peers.COMPILED_AT or in_full else peers.ONE_SCALE


@pytest.fixture
def too_many_edges(graph: Graph, in_full: bool) -> str | None:
    """Why peers that take seconds a call on this graph are left out; None when they are not."""
    return peers.TOO_MANY if graph.nnz > peers.MANY_EDGES and not in_full else None


@pytest.fixture
def dataset(scale: str, request: pytest.FixtureRequest) -> Dataset:
    """The data set of the scale."""
    return scales.dataset(scale, _folder(scale, request.config))


def _folder(scale: str, config: pytest.Config) -> Path | None:
    """Where the data of a scale are; None where they are generated."""
    return None if scale in GENERATED else _real_data(config)


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
    return Measure(benchmark, _device(where["backend"]), quick, request.config.getoption("--hold"), where)


def _where(item: pytest.Item) -> dict[str, str]:
    parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    module = getattr(item, "module", None)
    return {
        "operation": getattr(module, "OPERATION", item.path.stem.removeprefix("test_")),
        "scale": str(parameters.get("scale", "")),
        "backend": str(parameters.get("backend", "cpu")),
    }


@pytest.fixture
def compare(measure: Measure, dataset: Dataset, quick: bool, in_full: bool) -> Callable[..., None]:
    """Time ours against one baseline, turn by turn, and require a ratio of the medians."""

    def run(
        ours: Callable[[], object], peer: str, baseline: Callable[[], object], at_least: float, case: str, rounds: int
    ) -> None:
        rounds, size = 1 if quick else rounds if in_full else min(rounds, 3), len(dataset.train)
        measure(ours, {peer: baseline}, size=size, unit="interactions", case=case, agree=anything, rounds=rounds)
        measure.at_least(peer, at_least)

    return run


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _device(_where(item)["backend"]) == "cuda" and not torch.cuda.device_count():
        pytest.skip("no CUDA device")
    left_out = getattr(getattr(item, "module", None), "NOT_AT_LARGEST", ())
    if _where(item)["scale"] == LARGEST and any(word in item.name for word in left_out):
        pytest.skip(f"takes hours at {LARGEST}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        item.config.stash[NOT_RUN].append({"name": item.name, **_where(item), "reason": reason})


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-benchmark writes its files
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    session.config.stash[INTERRUPTED] = exitstatus == pytest.ExitCode.INTERRUPTED
    yield


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["crane"] = environment() | {"threads": config.getoption("--threads")}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.device_count() else [])]
    # Not with the machine's facts: they are measured, and pytest-benchmark warns of machines that differ.
    output_json["limits"] = {d: vars(machine.limits(d, config.getoption("--quick"))) for d in devices}
    output_json["not_run"] = config.stash[NOT_RUN]
    output_json["interrupted"] = config.stash[INTERRUPTED]
