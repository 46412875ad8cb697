"""InfoNCE against a loop; stability; zero rows; the path that recomputes its blocks."""

import math

import pytest
import torch

from crane_kernels import info_nce
from crane_kernels.info_nce import reference


def views(n, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


def by_loops(a, b, temperature):
    def cosine(x, y):
        lengths = math.hypot(*x) * math.hypot(*y)
        return sum(p * q for p, q in zip(x, y, strict=True)) / lengths if lengths else 0.0

    total = 0.0
    for i, x in enumerate(a.tolist()):
        logits = [cosine(x, y) / temperature for y in b.tolist()]
        top = max(logits)
        total += top + math.log(math.fsum(math.exp(logit - top) for logit in logits)) - logits[i]
    return total / len(a)


@pytest.mark.parametrize("n", [1, 2, 37, reference.BLOCK_ROWS + 1])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_equals_a_loop(n, temperature):
    a, b = views(n, 5)
    assert info_nce(a, b, temperature).item() == pytest.approx(by_loops(a, b, temperature), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("temperature", [0.05, 1])
def test_gradients(temperature):
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, temperature), views(5, 3))


def test_recomputed_blocks_give_the_same_value_and_gradients(monkeypatch):
    leaves = views(40, 4)
    monkeypatch.setattr(reference, "BLOCK_ROWS", 7)
    kept = info_nce(*leaves, 0.1)
    expected = torch.autograd.grad(kept, leaves)
    monkeypatch.setattr(reference, "KEPT_ROWS", 39)
    recomputed = info_nce(*leaves, 0.1)
    assert torch.equal(recomputed, kept)
    for found, wanted in zip(torch.autograd.grad(recomputed, leaves), expected, strict=True):
        assert torch.equal(found, wanted)


def test_gradients_of_recomputed_blocks(monkeypatch):
    monkeypatch.setattr(reference, "BLOCK_ROWS", 3)
    monkeypatch.setattr(reference, "KEPT_ROWS", 4)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.3), views(5, 2))


def test_value_does_not_depend_on_the_lengths_of_rows():
    a, b = views(9, 4)
    lengths = torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(info_nce(a * lengths, b / lengths, 0.1), info_nce(a, b, 0.1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_have_cosine_and_gradient_zero(dtype):
    a, b = (view.detach() for view in views(6, 3, dtype))
    a[2] = b[2] = b[4] = 0
    leaves = a.requires_grad_(), b.requires_grad_()
    loss = info_nce(*leaves, 0.01)
    assert loss.item() == pytest.approx(by_loops(a, b, 0.01), rel=1e-5)
    grad_a, grad_b = torch.autograd.grad(loss, leaves)
    assert bool(grad_a.isfinite().all())
    assert bool(grad_b.isfinite().all())
    assert not grad_a[2].any()
    assert not grad_b[[2, 4]].any()


def test_float32_is_stable_at_a_low_temperature():
    a, b = views(50, 8, torch.float32)
    exact = info_nce(a.double(), b.double(), 0.01)
    assert info_nce(a, b, 0.01).item() == pytest.approx(exact.item(), rel=1e-4)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert info_nce(opposite, -opposite, 0.01).item() == 200


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"a": torch.zeros(3)}, ValueError, "a: .* expected two dimensions"),
        ({"a": "a"}, TypeError, "a: found str"),
        ({"b": torch.zeros(4, 2)}, ValueError, r"b: found shape \(4, 2\), expected \(3, 2\)"),
        ({"b": torch.zeros(3, 2).half()}, TypeError, "b: found dtype torch.float16"),
        ({"b": torch.zeros(3, 2, device="meta")}, ValueError, "b: found on device meta"),
        ({"a": torch.zeros(0, 2), "b": torch.zeros(0, 2)}, ValueError, "a: found no rows"),
        ({"temperature": 0}, ValueError, "temperature: found 0"),
        ({"temperature": -0.1}, ValueError, "temperature: found -0.1"),
        ({"temperature": math.inf}, ValueError, "temperature: found inf"),
        ({"temperature": None}, TypeError, "temperature: found None"),
        ({"ids": [0, 1, 2]}, TypeError, "ids: found list"),
        ({"ids": torch.zeros(3)}, TypeError, "ids: found dtype torch.float32"),
        ({"ids": torch.zeros(2, dtype=torch.int64)}, ValueError, r"ids: found shape \(2,\), expected \(3,\)"),
        ({"ids": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "ids: found on device meta"),
        ({"symmetric": 1}, TypeError, "symmetric: found int"),
    ],
)
def test_refusals(change, error, text):
    with pytest.raises(error, match=text):
        info_nce(**{"a": torch.zeros(3, 2), "b": torch.zeros(3, 2), "temperature": 0.1, **change})


def by_labels(a, b, temperature, ids):
    """Each row's loss over the columns that its label leaves."""
    total = 0.0
    for i, label in enumerate(ids.tolist()):
        kept = [j for j, other in enumerate(ids.tolist()) if j == i or other != label]
        cosines = torch.nn.functional.cosine_similarity(a[i : i + 1], b[kept]) / temperature
        total = total + cosines.logsumexp(0) - cosines[kept.index(i)]
    return total / len(ids)


@pytest.mark.parametrize("block", [256, 4])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_rows_of_one_label_are_no_negatives(monkeypatch, block, dtype):
    monkeypatch.setattr(reference, "BLOCK_ROWS", block)
    leaves = views(11, 4)
    ids = torch.tensor([3, 1, 3, 3, -7, 0, 1, 2, 2, 9, 8], dtype=dtype)
    found, expected = info_nce(*leaves, 0.3, ids=ids), by_labels(*leaves, 0.3, ids)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))
    assert info_nce(*leaves, 0.3, ids=torch.zeros(11, dtype=dtype)).item() == pytest.approx(0, abs=1e-12)


def test_symmetric_is_the_mean_of_both_directions():
    a, b = views(9, 4)
    both = (info_nce(a, b, 0.2) + info_nce(b, a, 0.2)) / 2
    torch.testing.assert_close(info_nce(a, b, 0.2, symmetric=True), both, rtol=1e-12, atol=0)
    ids = torch.arange(9) % 4
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.3, ids=ids, symmetric=True), (a, b))
