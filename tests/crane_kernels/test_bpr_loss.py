"""BPR loss against a loop in Python floats; its gradient; that it repeats bit for bit."""

import math

import pytest
import torch

from crane_kernels import bpr_loss


def embeddings(n_users, n_items, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for n in (n_users, n_items)]


def triples(n_users, n_items, batch):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(n, (batch,), generator=generator) for n in (n_users, n_items, n_items)]


@pytest.mark.parametrize(("batch", "d"), [(1, 1), (7, 5), (200, 3)])
def test_equals_a_loop(batch, d):
    user, item = embeddings(6, 4, d)
    index = triples(6, 4, batch)
    total = 0.0
    for u, p, n in zip(*(i.tolist() for i in index), strict=True):
        margin = sum(a * (b - c) for a, b, c in zip(user[u].tolist(), item[p].tolist(), item[n].tolist(), strict=True))
        total += math.log1p(math.exp(-margin))
    assert bpr_loss(user, item, *index).item() == pytest.approx(total / batch, rel=1e-12)


def test_gradients():
    user, item = embeddings(3, 4, 2)
    index = [torch.tensor(i) for i in ([0, 0, 2, 0], [1, 1, 3, 2], [1, 0, 1, 3])]
    assert torch.autograd.gradcheck(lambda u, i: bpr_loss(u, i, *index), (user, item))


def test_large_margins_neither_overflow_nor_vanish():
    user = torch.tensor([[1000.0]], requires_grad=True)
    item = torch.tensor([[-1.0], [1.0]])
    zero, one = torch.tensor([0]), torch.tensor([1])
    wrong = bpr_loss(user, item, zero, zero, one)
    assert wrong.item() == 2000
    assert torch.autograd.grad(wrong, user)[0].item() == 2
    assert bpr_loss(user, item, zero, one, zero).item() == 0


def test_gradient_of_repeated_rows_is_the_same_bits_every_time():
    user, item = embeddings(5, 3, 64, torch.float32)
    index = triples(5, 3, 5000)
    first, *others = (torch.autograd.grad(bpr_loss(user, item, *index), (user, item)) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_int32_indices_and_strided_tables():
    user, item = embeddings(6, 4, 5)
    index = triples(6, 4, 9)
    strided = item.detach().T.contiguous().T
    assert torch.equal(bpr_loss(user, strided, *(i.int() for i in index)), bpr_loss(user, item, *index))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"user": torch.zeros(3)}, ValueError, "user: .* expected two dimensions"),
        ({"item": torch.zeros(4, 3)}, ValueError, r"item: found shape \(4, 3\), expected \(4, 2\)"),
        ({"item": torch.zeros(4, 2).double()}, TypeError, "item: found dtype torch.float64"),
        ({"users": torch.tensor([0.0, 1.0])}, TypeError, "users: found dtype torch.float32"),
        ({"users": [0, 1]}, TypeError, "users: found list"),
        ({"users": torch.tensor([[0, 1]])}, ValueError, "users: found shape"),
        ({"users": torch.tensor([0, 3])}, ValueError, "users: found index 3, expected 0 to 2"),
        ({"positives": torch.tensor([0, -1])}, ValueError, "positives: found index -1, expected 0 to 3"),
        ({"negatives": torch.tensor([4, 1])}, ValueError, "negatives: found index 4, expected 0 to 3"),
        ({"negatives": torch.tensor([1])}, ValueError, "negatives: found 1 rows, expected 2"),
        ({"negatives": torch.tensor([1, 1], device="meta")}, ValueError, "negatives: found on device meta"),
        ({"users": torch.empty(0, dtype=torch.int64)}, ValueError, "users: found no triples"),
    ],
)
def test_refusals(change, error, text):
    pair = torch.tensor([0, 1])
    arguments = {"user": torch.zeros(3, 2), "item": torch.zeros(4, 2), "users": pair, "positives": pair}
    with pytest.raises(error, match=text):
        bpr_loss(**{**arguments, "negatives": pair, **change})
