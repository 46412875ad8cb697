"""The interpreter's bfloat16 is a device's, and what it counts is what a kernel moves."""

from __future__ import annotations

import pytest
import torch
from comparison import operators
from interpreter import counted, tl, triton

from crane_kernels import dispatch, triton_support
from crane_kernels.dispatch import Implementation


@triton.jit
def product_kernel(a, b, out, n, BLOCK: tl.constexpr):  # noqa: N803
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK)
    cells = rows[:, None] * BLOCK + columns[None, :]
    left = tl.load(a + cells, mask=rows[:, None] < n, other=0.0)
    right = tl.load(b + columns[:, None] * BLOCK + columns[None, :])
    result = tl.dot(left, right, input_precision="ieee")
    tl.store(out + cells, result.to(left.dtype), mask=rows[:, None] < n)


@pytest.fixture(autouse=True)
def interpreter_only(counting: None) -> None:
    """These are tests of the interpreter."""


@pytest.mark.parametrize("dtype", triton_support.DTYPES, ids=str)
def test_products_and_casts_are_rounded_once(dtype: torch.dtype):
    a, b = torch.randn(40, 16).to(dtype), torch.randn(16, 16).to(dtype)
    out = torch.empty_like(a)
    product_kernel[(3,)](a, b, out, 40, 16)
    exact = a.double() @ b.double()
    assert ((out.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-5).all()


def test_counts_bytes_without_masked_lanes_and_launches():
    a, b = torch.randn(40, 16), torch.randn(16, 16)
    with counted() as traffic:
        for _ in range(2):
            product_kernel[(3,)](a, b, torch.empty_like(a), 40, 16)
    assert traffic.loaded == {"product_kernel": 2 * 4 * (40 * 16 + 3 * 16 * 16)}
    assert traffic.stored == {"product_kernel": 2 * 4 * 40 * 16}
    assert traffic.launches == {"product_kernel": 2}


def test_counts_eager_operators_that_launch():
    x = torch.randn(4, 4)
    assert operators(lambda: torch.relu(x.T @ x).view(16).sum()) == 3


def test_the_interpreter_serves_only_those_who_ask(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "_registry", dict(dispatch._registry))
    ours = Implementation("triton", lambda x: "triton", triton_support.missing, unasked=triton_support.unasked)
    dispatch.register("toy", ours, Implementation("reference", lambda x: "reference"))
    assert dispatch.call("toy", None, 1) == "reference"
    assert dispatch.call("toy", "triton", 1) == "triton"
    assert dispatch.choose("toy", None, 1).rejected["triton"].startswith("Triton's interpreter serves only")
