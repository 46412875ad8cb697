"""Sparse times dense on a GPU: time against torch.sparse.mm (cuSPARSE), and the fraction of the memory's bandwidth.

Bytes are the fewest: every index, value and gathered row of x once for each edge, every output row once. Caches may
serve repeated rows, so that the fraction can exceed 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from crane_kernels import Graph, propagate, spmm

if not torch.cuda.device_count():
    pytest.skip("not run: no CUDA device", allow_module_level=True)

WIDTH = 64
SIZES = {
    "baby": (19_445, 7_050, 160_792),
    "elec": (192_403, 63_001, 1_689_188),
    "ten times elec": (1_924_030, 630_010, 16_891_880),
}


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """Median time on the device, by events of its own clock, after a warm-up."""
    times = []
    for _ in range(rounds + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def bandwidth(rounds: int) -> float:
    """Bytes a second of a device-to-device copy of 1 GiB, read and write counted."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (milliseconds(lambda: target.copy_(source), rounds) / 1e3)


def interactions(n_users: int, n_items: int, n_edges: int) -> Graph:
    """A symmetric, normalised graph of users and items whose popularity falls off like 1 / rank."""
    generator = np.random.default_rng(0)
    weights = 1.0 / (np.arange(n_items) + 10.0)
    items = generator.choice(n_items, n_edges, p=weights / weights.sum())
    users = generator.integers(0, n_users, n_edges)
    graph = Graph.from_edges(users, items, shape=(n_users, n_items))
    return graph.with_value(torch.ones(graph.nnz)).bipartite().normalize("symmetric").to("cuda")


def moved(graph: Graph, x: Tensor) -> int:
    """The fewest bytes of one product."""
    size = x.element_size()
    edge = graph.col.element_size() + size + WIDTH * size
    return graph.nnz * edge + graph.n_rows * (8 + WIDTH * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_against_cusparse(benchmark: BenchmarkFixture, size: str, dtype: torch.dtype, quick: bool):
    if quick and size != "baby":
        pytest.skip("not run: --quick")
    rounds = 3 if quick else 50
    graph = interactions(*SIZES[size])
    x = torch.randn(graph.n_cols, WIDTH, device="cuda", dtype=dtype)
    cast = graph.to(dtype)
    matrix = graph.to_torch()  # cuSPARSE through torch is float32
    x32 = x.float()
    exact = torch.sparse.mm(matrix.double(), x.double())
    error = (spmm(cast, x, implementation="cuda").double() - exact).abs().max() / exact.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)

    def ours_and_wait() -> None:
        spmm(cast, x, implementation="cuda")
        torch.cuda.synchronize()

    benchmark.pedantic(ours_and_wait, rounds=rounds, warmup_rounds=3)
    ours = milliseconds(lambda: spmm(cast, x, implementation="cuda"), rounds)
    theirs = milliseconds(lambda: torch.sparse.mm(matrix, x32), rounds)
    layers = milliseconds(lambda: propagate(cast, x, 2, implementation="cuda"), rounds)
    fraction = moved(cast, x) / (ours / 1e3) / bandwidth(rounds)
    benchmark.extra_info |= {"milliseconds": ours, "torch.sparse.mm": theirs, "bandwidth": fraction, "layers": layers}
    print(
        f"\n{torch.cuda.get_device_name()}, {size}, {dtype}: spmm {ours:.3f} ms, torch.sparse.mm in float32 "
        f"{theirs:.3f} ms ({theirs / ours:.2f}x), {fraction:.0%} of the bandwidth of a copy; two layers {layers:.3f} ms"
    )
    assert quick or dtype != torch.float32 or theirs >= ours
