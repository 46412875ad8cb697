"""What a build finds, is asked for and reports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from emulator import ROOT

sys.path.insert(0, str(ROOT))

import build_cuda

OUTPUT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPf' for 'sm_80'
ptxas info    : Function properties for _Z3addPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z3addPf' for 'sm_100'
ptxas info    : Function properties for _Z3addPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 4096 bytes smem
"""


def test_table_of_registers():
    kernels = build_cuda.read_kernels(OUTPUT)
    assert [(k.architecture, k.registers, k.spilled_bytes) for k in kernels] == [("sm_80", 8, 0), ("sm_100", 48, 20)]
    lines = build_cuda.register_table(kernels).splitlines()
    assert lines[0].split() == ["registers", "sm_80", "sm_100"]
    assert lines[1].split()[-2:] == ["8", "48!"]
    assert lines[2] == "1 of 2 spill (!)"


def test_symbols_are_read_as_they_are_written() -> None:
    assert build_cuda._readable(["_Z3addPf", "plain"]) == ["add", "plain"]


@pytest.mark.parametrize(
    ("text", "cuda"),
    [("cuda: Optional[str] = '13.0'\n", "13.0"), ('cuda = "12.6"\n', "12.6"), ("cuda: Optional[str] = None\n", None)],
)
def test_cuda_of_torch(tmp_path: Path, text: str, cuda: str | None):
    (tmp_path / "version.py").write_text("__version__ = '2.14.1'\n" + text + "hip = None\n")
    assert build_cuda.torch_cuda_version(tmp_path) == cuda


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    """Something that answers like an nvcc of CUDA 12.6."""
    program = tmp_path / "nvcc"
    program.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo "release 12.6, V12.6.1";; *) echo compute_80; echo compute_90;; esac\n'
    )
    program.chmod(0o755)
    return program


def test_architectures(nvcc: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert build_cuda.architectures(nvcc) == ("80-real", "90")  # PTX of the last one it knows
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6;9.0a 12.0+PTX")
    assert build_cuda.architectures(nvcc) == ("86-real", "90a-real", "120-real", "120-virtual")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere;8.0")
    assert build_cuda.architectures(nvcc) == ("80-real", "86-real", "86-virtual")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hoper")
    with pytest.raises(build_cuda.CudaNotBuiltError, match="TORCH_CUDA_ARCH_LIST has 'Hoper', expected entries like"):
        build_cuda.architectures(nvcc)


def test_reasons_not_to_build(nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def reason() -> str:
        with pytest.raises(build_cuda.CudaNotBuiltError) as error:
            build_cuda.find_toolchain(tmp_path)
        return str(error.value)

    monkeypatch.delenv("CRANE_CUDA", raising=False)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    (tmp_path / "version.py").write_text("cuda = None\n")
    assert reason() == "the torch of the build has no CUDA"
    (tmp_path / "version.py").write_text("cuda = '11.8'\n")
    assert reason() == "nvcc 12.6 is newer than the CUDA 11.8 of torch, whose driver need not know it"
    (tmp_path / "version.py").write_text("cuda = '13.0'\n")
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    assert reason().startswith(f"{nvcc} does not run: ")
    monkeypatch.setenv("CRANE_CUDA", "0")
    assert reason() == "CRANE_CUDA=0 was set at build time"
    monkeypatch.setenv("CRANE_CUDA", "maybe")
    with pytest.raises(SystemExit, match="CRANE_CUDA: found 'maybe'"):
        build_cuda.find_toolchain(tmp_path)


def test_a_fitting_toolchain(nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CRANE_CUDA", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    (tmp_path / "version.py").write_text("cuda = '13.0'\n")
    assert build_cuda.find_toolchain(tmp_path) == build_cuda.Toolchain(nvcc, "12.6", ("80-real", "90"))
