"""Whether Triton's kernels can run is told before they are called, and in which precision they multiply."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from crane_kernels import triton_support


def test_refusals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_support, "_interpreting", False)
    assert triton_support.refuses("x", torch.zeros(1), 8) == "x is on device cpu, not on a CUDA or HIP device"
    monkeypatch.setattr(triton_support, "_interpreting", True)
    assert triton_support.refuses("x", torch.zeros(1), 8) is None
    assert "on device meta, not on the CPU" in str(triton_support.refuses("x", torch.zeros(1, device="meta"), 8))
    assert "dtype torch.float64, not float32" in str(triton_support.refuses("x", torch.zeros(1).double(), 8))
    assert "width 257, above 256" in str(triton_support.refuses("x", torch.zeros(1), 257))


def test_the_interpreter_does_not_compute_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_support, "_interpreting", True)
    monkeypatch.setattr(triton_support, "INTERPRETED_DTYPES", {torch.float32, torch.float16})
    assert "computes wrongly" in str(triton_support.refuses("x", torch.zeros(1).bfloat16(), 8))


def test_without_triton(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_support, "_absent", "Triton is not installed")
    choice = triton_support.implementation("crane_kernels.no_such_module", "function")
    assert choice.missing() == "Triton is not installed"
    with pytest.raises(RuntimeError, match="because Triton is not installed"):
        choice.function()


def test_imports_without_triton():
    program = (
        "import sys; sys.modules['triton'] = None; import crane_kernels; from crane_kernels import triton_support as t;"
        "print(t.missing())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "Triton is not installed\n"


def test_an_older_triton_is_as_none():
    pytest.importorskip("triton", reason="Triton is not installed")
    program = (
        "import triton; triton.__version__ = '3.6.0'; del triton.constexpr_function;"
        "import crane_kernels; from crane_kernels import triton_support as t; print(t.missing())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "Triton 3.6.0 is installed, and 3.7 or newer is needed\n"


@pytest.mark.parametrize(("setting", "expected"), [("high", "tf32"), ("highest", "ieee")])
def test_tf32_follows_torchs_own_setting(setting: str, expected: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert triton_support.input_precision(torch.float32) == expected
        assert triton_support.input_precision(torch.bfloat16) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("width", "expected"), [(1, 16), (16, 16), (17, 32), (64, 64), (100, 128), (256, 256)])
def test_padded_widths(width: int, expected: int):
    assert triton_support.padded(width) == expected
