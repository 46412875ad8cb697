"""The InfoNCE kernels against the float64 reference, in precision, bytes and on awkward rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from comparison import assert_as_good_as_plain, value_and_gradients, worst
from interpreter import counted, tl
from torch.nn import functional
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from crane_kernels import info_nce, triton_support
from crane_kernels.info_nce.reference import info_nce as reference
from crane_kernels.info_nce.triton import info_nce as loss_by_triton
from crane_kernels.info_nce.triton import info_nce_fwd_kernel, tile

DTYPES = triton_support.DTYPES


def views(n: int, width: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Two views that agree in part, so that losses are neither 0 nor log(n)."""
    generator = torch.Generator().manual_seed(n + width)
    a, noise = (torch.randn(n, width, generator=generator) for _ in range(2))
    return [view.to(device, dtype).requires_grad_() for view in (a, a + 3 * noise)]


def labels(n: int, device: str) -> torch.Tensor:
    return torch.randint(max(1, n // 2), (n,), generator=torch.Generator().manual_seed(3)).to(device)


def compare(tensors: list[torch.Tensor], temperature: float, ids: torch.Tensor | None, symmetric: bool) -> None:
    def run(function, leaves):
        return value_and_gradients(lambda a, b: function(a, b, temperature, ids, symmetric), leaves)

    exact = run(reference, [leaf.detach().double().requires_grad_() for leaf in tensors])
    found = run(info_nce_by_triton, tensors)
    if tensors[0].dtype != torch.float32:
        assert_as_good_as_plain(found, run(reference, tensors), exact, ("loss", "a", "b"))
        return
    # A logit is 1 / temperature times as wrong as a cosine; a softmax's share near 1 is known to one rounding.
    eps = torch.finfo(torch.float32).eps
    one_share = 1 / (temperature * len(tensors[0]) * float(tensors[0].norm(dim=1).median()))
    for place, (ours, truth) in enumerate(zip(found, exact, strict=True)):
        floor = eps * (one_share if place else 8 / temperature)
        assert worst(ours, truth) <= 8 * eps / temperature * float(truth.abs().max()) + floor


def info_nce_by_triton(a, b, temperature, ids, symmetric):
    return info_nce(a, b, temperature, ids=ids, symmetric=symmetric, implementation="triton")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "width"), [(1, 16), (17, 33), (70, 64), (33, 7), (40, 100), (20, 256)])
def test_equals_the_reference(n, width, dtype, symmetric, device):
    for temperature in (0.01, 0.2, 1.0):
        compare(views(n, width, dtype, device), temperature, None, symmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_one_label_are_no_negatives(dtype, symmetric, device):
    for n in (1, 50):
        compare(views(n, 24, dtype, device), 0.2, labels(n, device), symmetric)
    alike = torch.zeros(50, dtype=torch.int32, device=device)
    assert info_nce_by_triton(*views(50, 24, dtype, device), 0.2, alike, symmetric).item() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths_of_rows_do_not_matter(dtype, device):
    """Squares of the largest numbers would overflow, those of denormals vanish."""
    limits = torch.finfo(dtype)
    a, b = (view.detach() for view in views(40, 32, dtype, device))
    exact = reference(a.double(), b.double(), 0.1, None, False).item()
    largest = torch.full((40, 1), limits.max / 16, dtype=dtype, device=device)
    powers = torch.exp2(torch.arange(40, device=device) % 7 - 9).to(dtype)[:, None]
    assert info_nce_by_triton(a * powers, b, 0.1, None, False).item() == pytest.approx(exact, rel=4 * limits.eps)
    huge = (a / a.abs().amax(1, keepdim=True)) * largest
    tiny = (b.double() / b.abs().amax(1, keepdim=True) * limits.tiny / 4).to(dtype)  # denormal, rounded
    expected = reference(huge.double(), tiny.double(), 0.1, None, False).item()
    leaves = huge.requires_grad_(), tiny
    loss = info_nce_by_triton(*leaves, 0.1, None, False)
    assert loss.item() == pytest.approx(expected, rel=4 * limits.eps)
    assert torch.autograd.grad(loss, huge)[0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows_have_cosine_and_gradient_zero(dtype, device):
    a, b = (view.detach() for view in views(20, 16, dtype, device))
    a[2] = b[2] = b[4] = 0
    leaves = [a.requires_grad_(), b.requires_grad_()]
    compare(leaves, 0.5, None, True)
    grad_a, grad_b = torch.autograd.grad(info_nce_by_triton(*leaves, 0.01, None, False), leaves)
    assert not grad_a[2].any()
    assert not grad_b[[2, 4]].any()


def test_opposite_and_equal_rows(device):
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], device=device)
    assert info_nce_by_triton(opposite, -opposite, 0.01, None, False).item() == pytest.approx(200, rel=1e-6)
    assert info_nce_by_triton(opposite, opposite, 0.01, None, False).item() == 0
    alike = torch.ones(37, 5, device=device)
    assert info_nce_by_triton(alike, alike, 0.01, None, True).item() == pytest.approx(math.log(37), rel=1e-6)


def test_strided_views_and_one_gradient(device):
    a, b = (view.detach().T.contiguous().T for view in views(19, 20, torch.float32, device))
    dense = info_nce_by_triton(a.contiguous(), b.contiguous(), 0.2, None, False)
    assert torch.equal(info_nce_by_triton(a, b, 0.2, None, False), dense)
    compare([a.requires_grad_(), b.requires_grad_()], 0.2, None, False)
    both = torch.autograd.grad(info_nce_by_triton(a, b, 0.2, None, False), [a, b])
    for place, leaves in enumerate(([a, b.detach()], [a.detach(), b])):
        alone = torch.autograd.grad(info_nce_by_triton(*leaves, 0.2, None, False), leaves[place])[0]
        assert torch.equal(alone, both[place])


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_bytes_are_as_the_tiling_predicts(symmetric, ids, device, counting):
    for n, width in ((70, 64), (33, 100)):
        leaves = views(n, width, torch.float16, device)
        blocks = -(-n // tile(torch.float16, width)[0])
        rows = 2 * n * width * (1 + blocks)
        directions = 1 + symmetric
        of_labels = 8 * n * (1 + blocks) if ids else 0
        with counted() as traffic:
            loss = info_nce_by_triton(*leaves, 0.2, labels(n, device) if ids else None, symmetric)
            loss.backward()
        assert traffic.loaded["info_nce_fwd_kernel"] == directions * (rows + of_labels)
        assert traffic.stored["info_nce_fwd_kernel"] == directions * 8 * n
        of_rows = 4 * n * (3 + blocks) * directions
        assert traffic.loaded["info_nce_bwd_kernel"] == 2 * (rows + 2 * blocks + of_labels) + of_rows
        assert traffic.stored["info_nce_bwd_kernel"] == 2 * 2 * n * width
        assert traffic.launches == {"info_nce_fwd_kernel": directions, "info_nce_bwd_kernel": 2}


def test_last_block_of_more_than_65536_rows(counting, monkeypatch):
    n, width, block = 65_630, 16, 64
    a, b = (view.detach() for view in views(n, width, torch.float32, "cpu"))
    row_loss, log_sum = torch.full((2, n), torch.nan)
    last = TensorHandle(np.array([n // block], dtype=np.int32), tl.int32)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", lambda *_: last)
    sizes = {"HAS_IDS": False, "PRECISION": "ieee", "BLOCK_M": block, "BLOCK_N": 1024, "BLOCK_D": 16}
    info_nce_fwd_kernel[(1,)](a, b, a, row_loss, log_sum, n, width, 5.0, **sizes)
    rows = slice(n // block * block, n)
    logits = 5 * functional.normalize(a[rows].double()) @ functional.normalize(b.double()).T
    expected = functional.cross_entropy(logits, torch.arange(n)[rows], reduction="none")
    torch.testing.assert_close(row_loss[rows].double(), expected, rtol=1e-5, atol=0)
    assert row_loss[: rows.start].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operator_is_registered_as_torch_demands(dtype, device):
    a, b = views(9, 8, dtype, device)
    for ids, symmetric in ((None, False), (labels(9, device), True)):
        arguments = (a, b, ids, 0.3, symmetric)
        torch.library.opcheck(torch.ops.crane_kernels.info_nce_triton.default, arguments)


def test_compiles_without_graph_breaks(device):
    leaves = views(11, 8, torch.float32, device)
    compiled = torch.compile(lambda a, b: loss_by_triton(a, b, 0.2, None, False), fullgraph=True, backend="aot_eager")
    with torch.autocast(device, torch.bfloat16):
        for ours, eager in zip(
            value_and_gradients(compiled, leaves),
            value_and_gradients(lambda a, b: info_nce_by_triton(a, b, 0.2, None, False), leaves),
            strict=True,
        ):
            assert torch.equal(ours, eager)
