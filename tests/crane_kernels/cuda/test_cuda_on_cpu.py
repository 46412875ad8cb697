"""The CPU's stand-in for CUDA: it computes what a GPU would, counts bytes, and finds what would be wrong on a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from emulator import ROOT, build

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(compiler: str, programs: Path) -> Run:
    """Runs a scenario of ``stand_in.cpp``."""
    sources = (ROOT / "csrc/cuda_on_cpu/cuda_on_cpu.cpp",)
    program = build(Path(__file__).with_name("stand_in.cpp"), programs, compiler, sources)
    return lambda *arguments: subprocess.run([program, *arguments], capture_output=True, text=True)


def values(done: subprocess.CompletedProcess[str]) -> list[list[int]]:
    assert done.returncode == 0, done.stderr
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("order", [(), ("descending",)])
def test_blocks_barriers_and_shared_memory(run: Run, order: tuple[str, ...]):
    found, (loaded, stored) = values(run("reverse", *order))
    assert found == [*range(63, -1, -1), *range(127, 63, -1), sum(range(64)), sum(range(64, 128))]
    assert (loaded, stored) == (128 * 4, 130 * 4)


def test_the_order_shows_a_barrier_that_is_not_there(run: Run):
    right = values(run("reverse"))[0]
    assert values(run("no barrier"))[0] != right or values(run("no barrier", "descending"))[0] != right


def test_groups_of_lanes(run: Run):
    found, _ = values(run("warp"))
    sums = [sum(range(8 * group, 8 * group + 8)) for group in range(4)]
    expected = [sums[lane // 8] * 10000 + 0b10101010 * 10 + 3 for lane in range(32)]
    expected[16:24] = [0] * 8
    assert found == expected


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("a lane is missing", "never arrive"),
        ("a thread misses the barrier", "never arrive"),
        ("lanes differ", "different operations"),
        ("outside the mask", "outside the mask"),
        ("misaligned", "misaligned"),
        ("past the end", "heap-buffer-overflow"),
        ("past shared memory", "heap-buffer-overflow"),
    ],
)
def test_what_is_wrong_on_a_gpu_ends_the_run(run: Run, scenario: str, message: str):
    done = run(scenario)
    assert done.returncode != 0
    assert message in done.stderr
