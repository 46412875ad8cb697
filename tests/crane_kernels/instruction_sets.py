"""Runs tests again under each instruction set of the compiled kernels but the one that is chosen by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crane_kernels import extension

each = pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
unless_named = pytest.mark.skipif("CRANE_ISA" in os.environ, reason="CRANE_ISA already names one instruction set")


def passes(isa: str, file: str, chosen: str) -> None:
    """Require that the tests of ``file`` which ``-k chosen`` selects pass with that instruction set."""
    if isa not in extension.instruction_sets():
        pytest.skip(f"this build and processor do not run {isa}")
    if isa == extension.instruction_set():
        pytest.skip(f"{isa} is what this processor's tests run with anyway")
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", chosen]
    # The package under test, also where it is installed in place: pytest puts a folder of its name first in the path.
    installed = str(Path(extension.__file__).parents[1])
    environment = os.environ | {"CRANE_ISA": isa, "PYTHONPATH": installed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
