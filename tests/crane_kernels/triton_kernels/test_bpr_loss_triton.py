"""The BPR kernels against the float64 reference, in precision, order of sums and on awkward triples."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from comparison import assert_as_good_as_plain, value_and_gradients
from interpreter import counted

from crane_kernels import bpr_loss, triton_support
from crane_kernels.bpr_loss import reference
from crane_kernels.bpr_loss import triton as kernels
from crane_kernels.bpr_loss.triton import bpr_loss as by_triton

DTYPES = triton_support.DTYPES


def tables(n_users: int, n_items: int, width: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    return [
        torch.randn(n, width, generator=generator).mul(0.3).to(device, dtype).requires_grad_()
        for n in (n_users, n_items)
    ]


def triples(n_users: int, n_items: int, batch: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return [torch.randint(n, (batch,), generator=generator).to(device) for n in (n_users, n_items, n_items)]


def compare(leaves: list[torch.Tensor], index: list[torch.Tensor]) -> None:
    def run(function, tensors):
        return value_and_gradients(lambda user, item: function(user, item, *index), tensors)

    exact = run(reference.bpr_loss, [leaf.detach().double().requires_grad_() for leaf in leaves])
    found = run(lambda *arguments: bpr_loss(*arguments, implementation="triton"), leaves)
    assert_as_good_as_plain(found, run(reference.bpr_loss, leaves), exact, ("loss", "user", "item"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n_users", "n_items", "width", "batch"), [(1, 1, 1, 1), (6, 4, 33, 17), (40, 30, 64, 50), (9, 9, 256, 40)]
)
def test_equals_the_reference(n_users, n_items, width, batch, dtype, device):
    compare(tables(n_users, n_items, width, dtype, device), triples(n_users, n_items, batch, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hubs_and_rows_that_do_not_occur(dtype, device):
    """One user and one item in all of 150 triples; the gradient is the same bits every time."""
    leaves = tables(5, 6, 24, dtype, device)
    users, positives, negatives = triples(5, 6, 150, device)
    index = [torch.full_like(users, 3), torch.full_like(positives, 5), negatives.clamp(max=4)]
    compare(leaves, index)
    first, again = (torch.autograd.grad(by_triton(*leaves, *index), leaves) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not first[0][:3].any()


def test_large_margins_neither_overflow_nor_vanish(device):
    user = torch.tensor([[1000.0]], device=device, requires_grad=True)
    item = torch.tensor([[-1.0], [1.0], [1.015]], device=device)
    zero, one, two = (torch.tensor([i], device=device) for i in range(3))
    wrong = by_triton(user, item, zero, zero, one)
    assert wrong.item() == 2000
    assert torch.autograd.grad(wrong, user)[0].item() == 2
    assert by_triton(user, item, zero, one, zero).item() == 0
    margin = 1000 * (item[2] - item[1]).item()
    small = by_triton(user, item, zero, two, one)
    assert small.item() == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4)
    tiny = torch.full((2, 3), torch.finfo(torch.float32).tiny / 2, device=device)
    assert by_triton(tiny, tiny, zero, zero, one).item() == pytest.approx(math.log(2))


def test_indices_out_of_range_touch_nothing_and_show(device):
    leaves = tables(4, 5, 16, torch.float32, device)
    good = triples(4, 5, 9, device)
    for place, value in ((0, 4), (1, -1), (2, 2**40)):
        index = [tensor.clone() for tensor in good]
        index[place][3] = value
        loss = by_triton(*leaves, *index)
        assert loss.isnan()
        torch.autograd.grad(loss, leaves)


def test_more_than_65536_triples(device, monkeypatch):
    if triton_support.interpreting():  # which takes a while for each program, however many its triples
        monkeypatch.setattr(kernels, "block", lambda _: 1024)
    leaves = tables(70_000, 3, 16, torch.float32, device)
    index = [torch.arange(65_560, device=device) + 4_440, *triples(1, 3, 65_560, device)[1:]]
    loss = by_triton(*leaves, *index)
    torch.testing.assert_close(loss, reference.bpr_loss(*leaves, *index))


def test_strided_tables_and_int32_indices(device):
    leaves, index = tables(6, 4, 20, torch.float32, device), triples(6, 4, 9, device)
    strided = [leaf.detach().T.contiguous().T for leaf in leaves]
    small = [tensor.int() for tensor in index]
    assert torch.equal(by_triton(*strided, *small), by_triton(*leaves, *index))
    compare([leaf.requires_grad_() for leaf in strided], small)


def test_forward_moves_the_bytes_it_says(device, counting):
    for dtype, size, width in ((torch.float16, 2, 20), (torch.float32, 4, 130)):
        leaves, index = tables(6, 4, width, dtype, device), triples(6, 4, 50, device)
        with counted() as traffic:
            by_triton(*leaves, *index)
        assert traffic.loaded == {"bpr_loss_fwd_kernel": 50 * (3 * size * width + 3 * 8)}
        assert traffic.stored == {"bpr_loss_fwd_kernel": 4 * 50 + 4 * -(-50 // kernels.block(width))}
        assert traffic.launches == {"bpr_loss_fwd_kernel": 1}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operator_is_registered_as_torch_demands(dtype, device):
    arguments = (*tables(6, 4, 5, dtype, device), *triples(6, 4, 9, device))
    torch.library.opcheck(torch.ops.crane_kernels.bpr_loss_triton.default, arguments)


def test_compiles_without_graph_breaks(device):
    leaves, index = tables(6, 4, 5, torch.float32, device), triples(6, 4, 9, device)
    public = partial(bpr_loss, implementation="triton")
    compiled = torch.compile(public, fullgraph=True, backend="aot_eager")
    eager = value_and_gradients(lambda *tensors: by_triton(*tensors, *index), leaves)
    with torch.autocast(device, torch.bfloat16):
        found = value_and_gradients(lambda *tensors: compiled(*tensors, *index), leaves)
    assert all(map(torch.equal, found, eager))
