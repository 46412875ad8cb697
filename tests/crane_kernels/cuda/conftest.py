"""The kernels, built for the CPU once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from emulator import Emulator, build

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++ compiler with the sanitizers' libraries."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler (g++ or clang++)")
    return found


@pytest.fixture(scope="session")
def programs(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled programs are kept: from one session to the next, where pytest has a cache."""
    cache = getattr(pytestconfig, "cache", None)  # absent under -p no:cacheprovider
    return cache.mkdir("cuda-on-cpu") if cache else tmp_path_factory.mktemp("cuda-on-cpu")


@pytest.fixture(scope="session")
def emulator(compiler: str, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """Runs the kernels of sparse times dense."""
    program = build(HERE / "emulated.cpp", programs, compiler)
    return Emulator(program, tmp_path_factory.mktemp("calls"))
