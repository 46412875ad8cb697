"""InfoNCE against a loop; stability; zero rows; the path that recomputes its blocks; the compiled kernels."""

import math
from decimal import Decimal
from fractions import Fraction

import instruction_sets
import numpy as np
import pytest
import torch

from crane_kernels import extension, info_nce, use_implementation
from crane_kernels.info_nce import reference


@pytest.fixture(params=["reference", "cpp"])
def implementation(request):
    """Every call of the test is served by one and by the other."""
    reason = extension.missing() if request.param == "cpp" else None
    if reason is not None:
        pytest.skip(reason)
    with use_implementation(request.param):
        yield


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


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e-25),
        (torch.float32, 1e-39),
        (torch.float32, 1e30),
        (torch.float16, 1e4),
        (torch.bfloat16, 1e30),
    ],
)
def test_reference_takes_rows_whose_squares_leave_the_range_of_numbers(dtype, size):
    a, b = (x.detach().to(dtype) for x in views(30, 33))
    a, b = ((x * size).requires_grad_() for x in (a, b))
    found = info_nce(a, b, 0.2, implementation="reference")
    expected = info_nce(a.double(), b.double(), 0.2)
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps + 1e-6, atol=0)
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(found, (a, b)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reference_in_half_precision_does_not_cancel(dtype):
    a = torch.eye(16, dtype=dtype)  # the loss is log(1 + 15 exp(-100))
    assert 0 <= info_nce(a, a.clone(), 0.01, implementation="reference").item() < 1e-4


@pytest.mark.parametrize("n", [1, 2, 37, reference.BLOCK_ROWS + 1])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
@pytest.mark.usefixtures("implementation")
def test_equals_a_loop(n, temperature):
    a, b = views(n, 5)
    assert info_nce(a, b, temperature).item() == pytest.approx(by_loops(a, b, temperature), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("temperature", [0.05, 1])
@pytest.mark.usefixtures("implementation")
def test_gradients(temperature):
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, temperature), views(5, 3))


def test_recomputed_blocks_give_the_same_value_and_gradients(monkeypatch):
    leaves = views(40, 4)
    monkeypatch.setattr(reference, "BLOCK_ROWS", 7)
    kept = reference.info_nce(*leaves, 0.1, None, False)
    expected = torch.autograd.grad(kept, leaves)
    monkeypatch.setattr(reference, "KEPT_ROWS", 39)
    recomputed = reference.info_nce(*leaves, 0.1, None, False)
    assert torch.equal(recomputed, kept)
    for found, wanted in zip(torch.autograd.grad(recomputed, leaves), expected, strict=True):
        assert torch.equal(found, wanted)


def test_gradients_of_recomputed_blocks(monkeypatch):
    monkeypatch.setattr(reference, "BLOCK_ROWS", 3)
    monkeypatch.setattr(reference, "KEPT_ROWS", 4)
    assert torch.autograd.gradcheck(lambda a, b: reference.info_nce(a, b, 0.3, None, False), views(5, 2))


@pytest.mark.usefixtures("implementation")
def test_value_does_not_depend_on_the_lengths_of_rows():
    a, b = views(9, 4)
    lengths = torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(info_nce(a * lengths, b / lengths, 0.1), info_nce(a, b, 0.1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("implementation")
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


@pytest.mark.usefixtures("implementation")
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
        ({"temperature": 2**2000}, ValueError, "temperature: found .*, expected a finite number above zero"),
        ({"ids": [0, 1, 2]}, TypeError, "ids: found list"),
        ({"ids": torch.zeros(3)}, TypeError, "ids: found dtype torch.float32"),
        ({"ids": torch.zeros(2, dtype=torch.int64)}, ValueError, r"ids: found shape \(2,\), expected \(3,\)"),
        ({"ids": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "ids: found on device meta"),
        ({"symmetric": 1}, TypeError, "symmetric: found int, expected a bool$"),
        ({"temperature": torch.ones(900)}, TypeError, "temperature: found tensor.{1,40}, expected a number$"),
    ],
)
def test_refusals(change, error, text):
    with pytest.raises(error, match=text):
        info_nce(**{"a": torch.zeros(3, 2), "b": torch.zeros(3, 2), "temperature": 0.1, **change})


@pytest.mark.parametrize(("dtype", "least"), [("float16", 3.1e-5), ("float32", 5.9e-39), ("float64", 1.2e-308)])
def test_temperatures_whose_logits_overflow_are_refused(dtype, least):
    a = torch.eye(2, dtype=getattr(torch, dtype))
    assert info_nce(a, a.flip(0), least).isfinite()
    for temperature in (least / 2, 5e-324):
        text = f"^temperature: found {temperature}, expected at least .*, below which torch.{dtype} overflows$"
        with pytest.raises(ValueError, match=text):
            info_nce(a, a, temperature)


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
@pytest.mark.usefixtures("implementation")
def test_rows_of_one_label_are_no_negatives(monkeypatch, block, dtype):
    monkeypatch.setattr(reference, "BLOCK_ROWS", block)
    leaves = views(11, 4)
    ids = torch.tensor([3, 1, 3, 3, -7, 0, 1, 2, 2, 9, 8], dtype=dtype)
    found, expected = info_nce(*leaves, 0.3, ids=ids), by_labels(*leaves, 0.3, ids)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))
    assert info_nce(*leaves, 0.3, ids=torch.zeros(11, dtype=dtype)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.usefixtures("implementation")
def test_symmetric_is_the_mean_of_both_directions():
    a, b = views(9, 4)
    both = (info_nce(a, b, 0.2) + info_nce(b, a, 0.2)) / 2
    torch.testing.assert_close(info_nce(a, b, 0.2, symmetric=True), both, rtol=1e-12, atol=0)
    ids = torch.arange(9) % 4
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.3, ids=ids, symmetric=True), (a, b))


def value_and_gradients(function, leaves):
    value = function(*leaves)
    return value, *torch.autograd.grad(value, leaves)


def check_compiled(leaves, temperature, ids=None, symmetric=False):
    """As near to the reference in float64 as the reference in the same precision is, but for a few roundings."""

    def by(implementation):
        return lambda a, b: info_nce(a, b, temperature, ids=ids, symmetric=symmetric, implementation=implementation)

    exact = value_and_gradients(by("reference"), [leaf.detach().double().requires_grad_() for leaf in leaves])
    usual, found = (value_and_gradients(by(name), leaves) for name in ("reference", "cpp"))
    for name, ours, theirs, precise in zip(("value", "a", "b"), found, usual, exact, strict=True):
        assert ours.dtype == theirs.dtype, name
        assert ours.shape == theirs.shape, name
        error, allowed = ((result.detach() - precise.detach()).norm() for result in (ours, theirs))
        # Logits have size 1 / temperature, and their rounding goes into the exponentials.
        allowed = 3 * allowed + 20 * torch.finfo(theirs.dtype).eps * (precise.detach().norm() + 1) * (
            1 + 1 / temperature
        )
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (48, 64), (49, 17), (257, 33), (500, 64), (1000, 5), (60, 300)])
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_matches_the_reference(n, d, temperature, dtype):
    check_compiled(views(n, d, dtype), temperature)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("labels", [1, 7, 300])
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_matches_with_labels(labels, symmetric):
    ids = torch.randint(labels, (421,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    check_compiled(views(421, 16, torch.float32), 0.1, ids, symmetric)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("compiled")
def test_compiled_loss_does_not_depend_on_the_lengths_of_rows(size, dtype):
    a, b = (view.detach() for view in views(90, 8, dtype))
    usual, found = (
        value_and_gradients(lambda *v: info_nce(*v, 0.05, implementation="cpp"), leaves)
        for leaves in (
            [a.clone().requires_grad_(), b.clone().requires_grad_()],
            [(a * size).requires_grad_(), b.clone().requires_grad_()],
        )
    )
    torch.testing.assert_close(found[0], usual[0])
    torch.testing.assert_close(found[1].double() * size, usual[1].double(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[2], usual[2], rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("compiled")
def test_compiled_has_the_same_bits_for_every_number_of_threads_and_any_strides():
    leaves = views(1300, 24, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(value_and_gradients(lambda a, b: info_nce(a, b, 0.2, implementation="cpp"), leaves))
    finally:
        torch.set_num_threads(threads)
    strided = [leaf.detach().T.contiguous().T.requires_grad_() for leaf in leaves]
    results.append(value_and_gradients(lambda a, b: info_nce(a, b, 0.2, implementation="cpp"), strided))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("row", [0, 700])
@pytest.mark.usefixtures("compiled")
def test_compiled_does_not_hide_nan(row):
    leaves = views(1000, 6, torch.float32)
    with torch.no_grad():
        leaves[1][row, 2] = math.nan
    assert all(bool(result.isnan().any()) for result in value_and_gradients(lambda a, b: info_nce(a, b, 0.2), leaves))


@instruction_sets.unless_named
@instruction_sets.each
@pytest.mark.usefixtures("compiled")
def test_every_instruction_set(isa):
    instruction_sets.passes(isa, __file__, "compiled")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.usefixtures("compiled")
def test_compiled_derivatives_of_first_and_second_order(symmetric):
    ids = torch.tensor([0, 1, 0, 2, 3])

    def loss(a, b):
        return info_nce(a, b, 0.3, ids=ids, symmetric=symmetric, implementation="cpp")

    assert torch.autograd.gradcheck(loss, views(5, 3))
    assert torch.autograd.gradgradcheck(loss, views(5, 3))


@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 0, 2])])
@pytest.mark.usefixtures("compiled")
def test_operators_are_registered_as_torch_wants(ids):
    a, b = views(4, 3)
    torch.library.opcheck(torch.ops.crane_kernels.info_nce.default, (a, b, 0.2, ids))
    a, b = a.detach(), b.detach().requires_grad_()
    log_sum_exp = torch.ops.crane_kernels.info_nce(a, b, 0.2, ids)[1].detach()
    grad = torch.tensor(2.0, dtype=a.dtype)
    torch.library.opcheck(torch.ops.crane_kernels.info_nce_backward.default, (grad, a, b, log_sum_exp, 0.2, ids))


@pytest.mark.usefixtures("compiled")
def test_torch_compile_and_export_keep_the_bits():
    compiled = torch.compile(lambda a, b: info_nce(a, b, 0.2, symmetric=True), fullgraph=True)
    for n in (30, 301):
        leaves = views(n, 8, torch.float32)
        found, expected = (
            value_and_gradients(f, leaves) for f in (compiled, lambda a, b: info_nce(a, b, 0.2, symmetric=True))
        )
        assert all(map(torch.equal, found, expected))

    class Loss(torch.nn.Module):
        def forward(self, a, b):
            return info_nce(a, b, 0.2)

    program = torch.export.export(Loss(), tuple(leaf.detach() for leaf in leaves))
    assert "crane_kernels.info_nce" in str(program.graph)
    assert torch.equal(program.module()(*leaves), info_nce(*leaves, 0.2))


@pytest.mark.usefixtures("compiled")
def test_compiled_refuses_half_precision_and_computes_in_float32_under_autocast():
    leaves = views(20, 4, torch.float32)
    outside = value_and_gradients(lambda a, b: info_nce(a, b, 0.2, implementation="cpp"), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradients(lambda a, b: info_nce(a, b, 0.2, implementation="cpp"), leaves)
    assert all(map(torch.equal, outside, inside))
    with pytest.raises(RuntimeError, match=r"a has dtype torch\.bfloat16, not float32 or float64"):
        info_nce(*(leaf.detach().bfloat16() for leaf in leaves), 0.2, implementation="cpp")


@pytest.mark.parametrize("implementation", ["reference", None])
@pytest.mark.parametrize("n", [40, reference.KEPT_ROWS + 1])
def test_autocast_changes_nothing(n, implementation):
    leaves = [x.detach().float().requires_grad_() for x in views(n, 16)]
    expected = info_nce(*leaves, 0.1, implementation=implementation)
    gradients = torch.autograd.grad(expected, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(*leaves, 0.1, implementation=implementation)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, torch.autograd.grad(found, leaves), gradients))


@pytest.mark.parametrize(
    "number",
    [Fraction(10) ** 400, 10**5000, Fraction(-1, 3), np.float32("nan")],
    ids=["1e400", "1e5000", "-1/3", "nan"],
)
def test_numbers_that_are_no_temperature(number):
    with pytest.raises(ValueError, match=r"^temperature: found .{1,60}, expected a finite number above zero$"):
        info_nce(*views(4, 3), number)


@pytest.mark.parametrize("value", [Decimal("0.1"), np.bool_(True), True, "0.1", torch.tensor(0.1)])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match=r"^temperature: found .*, expected a number$"):
        info_nce(*views(4, 3), value)


def test_temperatures_of_numpy():
    a, b = views(4, 3)
    assert torch.equal(info_nce(a, b, np.float32(0.25)), info_nce(a, b, 0.25))
    assert torch.equal(info_nce(a, b, np.int64(1)), info_nce(a, b, 1))


def test_the_meta_device():
    a, b = (x.detach().to("meta") for x in views(4, 3))
    assert info_nce(a, b, 0.2).device.type == "meta"


def test_gradients_by_torch_func_of_what_would_be_recomputed(monkeypatch):
    monkeypatch.setattr(reference, "KEPT_ROWS", 3)
    a, b = views(9, 4)
    (expected,) = torch.autograd.grad(info_nce(a, b, 0.2), a)
    b = b.detach()
    torch.testing.assert_close(torch.func.grad(lambda x: info_nce(x, b, 0.2))(a.detach()), expected)
