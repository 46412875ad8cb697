"""Every Triton kernel compiles for every chip without a GPU, spills nothing, fits, and multiplies on tensor cores.

``CRANE_COMPILE_MATRIX=all`` compiles every configuration for every width and dtype.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
compile_matrix = pytest.importorskip("compile_matrix")


def triton_older_than(*version: int) -> bool:
    return tuple(map(int, triton.__version__.split(".")[:2])) < version


PROGRAM = Path(__file__).with_name("compile_matrix.py")


@pytest.fixture(scope="module")
def rows(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The matrix, compiled in processes that do not interpret."""
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("triton") if cache else tmp_path_factory.mktemp("triton")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM)] + ["--all"] * (os.environ.get("CRANE_COMPILE_MATRIX") == "all")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    print(
        f"\n{'kernel':38} {'chip':10} {'dtype':5} {'width':>5} {'shared':>7} {'registers':>9} {'spilled':>7}  constants"
    )
    for row in found:
        print(
            f"{row['kernel']:38} {row['target']:10} {row['dtype']:5} {row['width']:5} {row['shared']:7} "
            f"{row['registers']:9} {row['spilled']:7}  {row['constants']} {row['config']}"
        )
    return found


def failing(rows: list[dict[str, object]], condition: str) -> str:
    """The rows that do not fulfil a condition in terms of their own columns, one a line."""
    return "\n".join(str(row) for row in rows if not eval(condition, {}, row))


def test_every_kernel_is_there_for_every_chip(rows: list[dict[str, object]]):
    names = {kernel.name for kernel in compile_matrix.load_kernels()}
    assert names
    assert {(row["kernel"], row["target"]) for row in rows} == {
        (name, chip) for name in names for chip in compile_matrix.TARGETS
    }
    assert len({row["width"] for row in rows}) > 1
    assert {row["dtype"] for row in rows} == set(compile_matrix.TYPES.values())


def test_every_kernel_compiles(rows: list[dict[str, object]]):
    assert not failing(rows, "not error")


@pytest.mark.skipif(triton_older_than(3, 8), reason="Triton 3.7 spills in three kernels")
def test_no_kernel_spills(rows: list[dict[str, object]]):
    assert not failing(rows, "spilled == 0")


def test_shared_memory_fits(rows: list[dict[str, object]]):
    assert not failing(rows, "shared <= shared_limit")


def test_products_run_on_tensor_cores(rows: list[dict[str, object]]):
    assert any(row["dots"] for row in rows)
    assert not failing(rows, "matrix_instructions or not dots")
