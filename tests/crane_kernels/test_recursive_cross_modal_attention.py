"""Recursive cross-modal attention: its forms and implementations agree, and the formulas hold row by row."""

import math

import instruction_sets
import numpy as np
import pytest
import torch

from crane_kernels import recursive_cross_modal_attention
from crane_kernels.recursive_cross_modal_attention import reference

NAMES = ("x", "w_joint", "b_joint", "w_attend", "w_out")


def inputs(n, modalities, d, dtype=torch.float64, seed=0):
    """Features of size one and weights scaled by their fan-in, as in training."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, modalities, d), (modalities * d, d), (d,), (modalities, d, d), (modalities, d, d))
    sizes = (1, (modalities * d) ** -0.5, 1, d**-0.5, d**-0.5)
    return [
        (torch.randn(shape, generator=generator, dtype=dtype) * size).requires_grad_()
        for shape, size in zip(shapes, sizes, strict=True)
    ]


def value_and_gradients(function, tensors, *rest):
    value = function(*tensors, *rest)
    weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
    return value, *torch.autograd.grad((value * weight).sum(), tensors)


def by_loops(x, w_joint, b_joint, w_attend, w_out, recursions, scale):
    n, modalities, _ = x.shape
    rows = [[x[i, m] for m in range(modalities)] for i in range(n)]
    for _ in range(recursions):
        joint = [torch.cat(rows[i]) @ w_joint + b_joint for i in range(n)]
        correlation = [
            torch.tanh(sum(torch.outer(rows[i][m], joint[i]) for i in range(n)) * scale) for m in range(modalities)
        ]
        rows = [
            [rows[i][m] + torch.relu(rows[i][m] @ w_attend[m] @ correlation[m]) @ w_out[m] for m in range(modalities)]
            for i in range(n)
        ]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [0, 1, 2, 67])
@pytest.mark.parametrize("recursions", [0, 1, 3])
def test_gram_and_direct_form_are_equal_with_their_gradients(n, modalities, recursions):
    tensors = inputs(n, modalities, 6)
    scale = 1 / math.sqrt(6 * max(n, 1))
    if recursions == 0:
        assert torch.equal(reference.gram_form(*tensors, 0, scale), tensors[0])
        assert torch.equal(reference.direct_form(*tensors, 0, scale), tensors[0])
        return
    gram = value_and_gradients(reference.gram_form, tensors, recursions, scale)
    direct = value_and_gradients(reference.direct_form, tensors, recursions, scale)
    for name, found, expected in zip(("value", *NAMES), gram, direct, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("recursions", [0, 1, 3])
@pytest.mark.parametrize("rows", [[], [4], [5, 0, 5, 66]])
def test_wanted_rows_are_those_of_the_whole_with_their_gradients(recursions, rows):
    tensors, wanted = inputs(67, 2, 6), torch.tensor(rows, dtype=torch.int64)
    tensors = tensors if recursions else tensors[:1]

    def whole(x, *weights):
        return recursive_cross_modal_attention(x, *(weights or inputs(1, 2, 6)[1:]), recursions)[wanted]

    for function in (reference.gram_form, reference.direct_form):

        def some(x, *weights, function=function):
            return function(x, *(weights or inputs(1, 2, 6)[1:]), recursions, 1 / math.sqrt(6 * 67), wanted)

        for found, expected in zip(
            value_and_gradients(some, tensors), value_and_gradients(whole, tensors), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_refuses_rows_out_of_range():
    with pytest.raises(ValueError, match=r"^rows: found index 3, expected 0 to 2, the rows of x$"):
        recursive_cross_modal_attention(*inputs(3, 2, 4), 1, rows=torch.tensor([0, 3]))


def test_low_memory_gives_the_same_and_keeps_the_arguments_alone():
    tensors = inputs(9, 2, 4)

    def kept_beside_arguments(memory):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            recursive_cross_modal_attention(*tensors, 3, memory=memory, implementation="reference")
        return sum(all(t is not argument for argument in tensors) for t in kept)

    fast = value_and_gradients(recursive_cross_modal_attention, tensors, 3)
    low = value_and_gradients(lambda *t: recursive_cross_modal_attention(*t, 3, memory="low"), tensors)
    assert all(map(torch.equal, fast, low))
    assert kept_beside_arguments("fast") > 0
    assert kept_beside_arguments("low") == 0


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_equals_the_formulas_row_by_row(modalities):
    tensors = inputs(5, modalities, 4)
    expected = value_and_gradients(by_loops, tensors, 2, 0.2)
    for function in (reference.gram_form, recursive_cross_modal_attention):
        for found, wanted in zip(value_and_gradients(function, tensors, 2, 0.2), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_scale_defaults_to_the_inverse_root_of_width_times_rows():
    tensors = inputs(10, 2, 4)
    explicit = recursive_cross_modal_attention(*tensors, 2, 1 / math.sqrt(4 * 10))
    assert torch.equal(recursive_cross_modal_attention(*tensors, 2), explicit)
    assert not torch.equal(recursive_cross_modal_attention(*tensors, 2, 0.5), explicit)


@pytest.mark.parametrize("form", [reference.gram_form, reference.direct_form])
@pytest.mark.parametrize("modalities", [1, 2])
def test_gradients(form, modalities):
    tensors = inputs(3, modalities, 2)
    assert torch.autograd.gradcheck(lambda *t: form(*t, 2, 0.1), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: form(*t, 2, 0.1), tensors)


def test_strided_input_and_partial_gradients():
    x, *weights = (tensor.detach() for tensor in inputs(9, 2, 4))
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    weights[0].requires_grad_()
    torch.testing.assert_close(
        recursive_cross_modal_attention(strided, *weights, 2), recursive_cross_modal_attention(x, *weights, 2)
    )
    recursive_cross_modal_attention(strided, *weights, 2).sum().backward()
    assert weights[0].grad is not None
    assert x.grad is None


def test_float32_is_close_to_float64():
    tensors = inputs(300, 2, 16, torch.float32)
    exact = recursive_cross_modal_attention(*(tensor.double() for tensor in tensors), 2)
    torch.testing.assert_close(recursive_cross_modal_attention(*tensors, 2).double(), exact, rtol=1e-4, atol=1e-4)


def test_sums_over_many_rows_do_not_overflow_half_precision():
    tensors = [tensor.detach() for tensor in inputs(70_000, 1, 8, torch.float16)]
    tensors[0][:, 0, 0] = 2.0  # whose squares sum to 280,000
    found = recursive_cross_modal_attention(*tensors, 1)
    expected = recursive_cross_modal_attention(*(tensor.double() for tensor in tensors), 1)
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_gradients_by_torch_func(memory):
    tensors = inputs(9, 2, 4)
    plain = [tensor.detach() for tensor in tensors]

    def call(*leaves):
        return recursive_cross_modal_attention(*leaves, 2, memory=memory).square().sum()

    found = torch.func.grad(call, argnums=tuple(range(5)))(*plain)
    for gradient, expected in zip(found, torch.autograd.grad(call(*tensors), tensors), strict=True):
        torch.testing.assert_close(gradient, expected)
    ones = torch.ones_like(plain[0])
    _, along = torch.func.jvp(lambda x: call(x, *plain[1:]), (plain[0],), (ones,))
    torch.testing.assert_close(along, found[0].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_takes_features_and_weights_in_its_dtype(dtype: torch.dtype):
    x, *weights = inputs(30, 2, 8, torch.float32)
    x = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = recursive_cross_modal_attention(x, *weights, 2)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in (x, *weights)]
    expected = recursive_cross_modal_attention(*halves, 2)
    assert torch.equal(found, expected)
    found.float().square().sum().backward()
    expected.float().square().sum().backward()
    for tensor, half in zip((x, *weights), halves, strict=True):
        assert tensor.grad.dtype == tensor.dtype
        assert torch.equal(tensor.grad.bfloat16(), half.grad)


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_compiles_under_autocast(memory: str):
    tensors = inputs(30, 2, 8, torch.float32)
    rows = torch.tensor([3, 0, 3])

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return recursive_cross_modal_attention(*arguments, 2, rows=rows, memory=memory)

    found = value_and_gradients(torch.compile(call, fullgraph=True, backend="aot_eager"), tensors)
    for result, expected in zip(found, value_and_gradients(call, tensors), strict=True):
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)


def test_autocast_leaves_float64():
    tensors = inputs(30, 2, 8)
    expected = recursive_cross_modal_attention(*tensors, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(recursive_cross_modal_attention(*tensors, 2), expected)


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.zeros(2, 3, 3, dtype=torch.int64), "w_out: found dtype torch.int64, expected a floating-point dtype"),
        ([1.0], "w_out: found list, expected a torch tensor"),
        (torch.zeros(2, 3, 3), "w_out: found dtype torch.float32, expected torch.float64, the dtype of x"),
    ],
)
def test_refuses_the_same_under_autocast(weight: object, text: str):
    tensors = [tensor.detach() for tensor in inputs(4, 2, 3)[:-1]]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=text):
        recursive_cross_modal_attention(*tensors, weight, 2)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.zeros(4, 6)}, ValueError, r"x: found shape \(4, 6\), expected three dimensions"),
        ({"x": torch.zeros(4, 0, 3)}, ValueError, "x: .* at least one modality"),
        ({"x": torch.zeros(4, 2, 3, dtype=torch.int64)}, TypeError, "x: found dtype torch.int64"),
        ({"x": [[1.0]]}, TypeError, "x: found list"),
        ({"w_joint": torch.zeros(3, 6)}, ValueError, r"w_joint: found shape \(3, 6\), expected \(6, 3\)"),
        ({"b_joint": torch.zeros(6)}, ValueError, r"b_joint: found shape \(6,\), expected \(3,\)"),
        ({"w_attend": torch.zeros(3, 3)}, ValueError, "w_attend: .* expected three dimensions"),
        ({"w_out": torch.zeros(2, 3, 4)}, ValueError, r"w_out: found shape \(2, 3, 4\), expected \(2, 3, 3\)"),
        ({"w_out": torch.zeros(2, 3, 3).double()}, TypeError, "w_out: found dtype torch.float64"),
        ({"w_out": torch.zeros(2, 3, 3, device="meta")}, ValueError, "w_out: found on device meta"),
        ({"recursions": -1}, ValueError, "recursions: found -1"),
        ({"recursions": 2.0}, TypeError, "recursions: found 2.0"),
        ({"scale": 0.0}, ValueError, "scale: found 0.0"),
        ({"scale": math.nan}, ValueError, "scale: found nan"),
        ({"scale": "1"}, TypeError, "scale: found '1'"),
        ({"memory": "none"}, ValueError, "memory: found 'none', expected 'fast' or 'low'"),
    ],
)
def test_refusals(change, error, text):
    tensors = dict(zip(NAMES, (tensor.detach() for tensor in inputs(4, 2, 3, torch.float32)), strict=True))
    with pytest.raises(error, match=text):
        recursive_cross_modal_attention(**{**tensors, "recursions": 1, **change})


# rows x modalities x width, recursions
COMPILED = [
    (0, 2, 5, 2),
    (1, 1, 1, 1),
    (1, 4, 3, 3),
    (7, 3, 2, 2),
    (97, 2, 64, 3),  # one row more than a block
    (300, 3, 17, 1),
    (901, 1, 50, 4),
    (2000, 2, 33, 2),
    (641, 4, 65, 2),
    (70, 1, 256, 2),
]


def wanted_rows(kind, n):
    generator = torch.Generator().manual_seed(1)
    if kind == "repeated" and n:
        return torch.randint(n, (n // 2 + 3,), generator=generator)
    return {"all": None, "none": torch.zeros(0, dtype=torch.int32)}.get(kind, torch.randperm(n, generator=generator))


def compiled_call(*arguments, **options):
    return recursive_cross_modal_attention(*arguments, **options, implementation="cpp")


def by_hand(tensors, recursions, scale, rows):
    """Value and gradients of the direct form in a wider floating-point type than the tensors'."""
    wider = {torch.float32: np.float64, torch.float64: np.longdouble}[tensors[0].dtype]
    x, w_joint, b_joint, w_attend, w_out = (tensor.detach().numpy().astype(wider) for tensor in tensors)
    (n, modalities, d), states = x.shape, []
    for _ in range(recursions):
        joint = x.reshape(n, modalities * d) @ w_joint + b_joint
        correlation = np.tanh(np.einsum("nmd,ne->mde", x, joint) * wider(scale))
        projected = np.stack([x[:, m] @ w_attend[m] for m in range(modalities)], 1)
        attended = np.stack([projected[:, m] @ correlation[m] for m in range(modalities)], 1)
        states.append((x, joint, correlation, projected, attended))
        x = x + np.stack([np.maximum(attended[:, m], 0) @ w_out[m] for m in range(modalities)], 1)
    value = x if rows is None else x[rows.numpy()]
    weight = torch.linspace(-1, 2, value.size, dtype=tensors[0].dtype).numpy().reshape(value.shape)
    grad = np.zeros_like(x)
    np.add.at(grad, slice(None) if rows is None else rows.numpy(), weight)
    grads = [np.zeros_like(w) for w in (w_joint, b_joint, w_attend, w_out)]
    for x, joint, correlation, projected, attended in reversed(states):
        grad_x, grad_joint = grad.copy(), np.zeros_like(joint)
        for m in range(modalities):
            grads[3][m] += np.maximum(attended[:, m], 0).T @ grad[:, m]
            grad_attended = (grad[:, m] @ w_out[m].T) * (attended[:, m] > 0)
            grad_projected = grad_attended @ correlation[m].T
            grads[2][m] += x[:, m].T @ grad_projected
            through = projected[:, m].T @ grad_attended * (1 - correlation[m]) * (1 + correlation[m]) * scale
            grad_x[:, m] += grad_projected @ w_attend[m].T + joint @ through.T
            grad_joint += x[:, m] @ through
        grads[0] += x.reshape(n, modalities * d).T @ grad_joint
        grads[1] += grad_joint.sum(0)
        grad = grad_x + (grad_joint @ w_joint.T).reshape(x.shape)
    return value, grad, *grads


def check_compiled(tensors, recursions, scale, rows, memory="fast"):
    """The value and every gradient, about as near to the exact ones as plain PyTorch's in that precision."""
    exact = by_hand(tensors, recursions, scale, rows)
    usual = [
        value_and_gradients(form, tensors, recursions, scale, rows)
        for form in (reference.direct_form, reference.gram_form)
    ]
    found = value_and_gradients(lambda *t: compiled_call(*t, recursions, scale, rows, memory=memory), tensors)
    for name, ours, *theirs, precise in zip(("value", *NAMES), found, *usual, exact, strict=True):
        assert ours.dtype == theirs[0].dtype, name
        assert ours.shape == theirs[0].shape, name
        error, *errors = (np.linalg.norm(result.detach().numpy() - precise) for result in (ours, *theirs))
        allowed = 3 * max(errors) + 20 * torch.finfo(ours.dtype).eps * np.linalg.norm(precise)
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", ["all", "none", "permuted", "repeated"])
@pytest.mark.parametrize(("n", "modalities", "d", "recursions"), COMPILED)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_matches_the_direct_form(n, modalities, d, recursions, rows, dtype):
    tensors = inputs(n, modalities, d, dtype)
    check_compiled(tensors, recursions, 1 / math.sqrt(d * max(n, 1)), wanted_rows(rows, n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 300.0])
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_matches_at_zero_and_at_saturation(size, dtype):
    x, *weights = inputs(210, 2, 20, dtype)
    check_compiled([(x.detach() * size).requires_grad_(), *weights], 2, 1 / math.sqrt(20 * 210), None)


@pytest.mark.parametrize("dead", [2, 3])
@pytest.mark.usefixtures("compiled")
def test_compiled_matches_where_nothing_is_attended(dead):
    tensors = inputs(50, 2, 8)
    tensors[dead] = torch.zeros_like(tensors[dead]).requires_grad_()
    check_compiled(tensors, 2, 0.05, None)


@pytest.mark.parametrize("rows", ["all", "repeated"])
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_low_memory_has_the_same_bits(rows):
    tensors, rows = inputs(700, 2, 24, torch.float32), wanted_rows(rows, 700)
    fast, low = (
        value_and_gradients(lambda *t, kind=kind: compiled_call(*t, 4, rows=rows, memory=kind), tensors)
        for kind in ("fast", "low")
    )
    assert all(map(torch.equal, fast, low))
    check_compiled(tensors, 4, 1 / math.sqrt(24 * 700), rows, "low")


@pytest.mark.usefixtures("compiled")
def test_compiled_has_the_same_bits_for_every_number_of_threads():
    tensors, rows = inputs(3000, 2, 40, torch.float32), wanted_rows("repeated", 3000)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(value_and_gradients(lambda *t: compiled_call(*t, 3, rows=rows), tensors))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


@instruction_sets.unless_named
@instruction_sets.each
@pytest.mark.usefixtures("compiled")
def test_every_instruction_set(isa):
    instruction_sets.passes(isa, __file__, "matches or bits")


@pytest.mark.parametrize("wanted", range(1, 6))
@pytest.mark.parametrize("rows", ["all", "repeated"])
@pytest.mark.parametrize("recursions", [1, 2])
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_gradients_of_some_arguments(wanted, rows, recursions):
    tensors, rows = inputs(60, 2, 5), wanted_rows(rows, 60)
    every = value_and_gradients(lambda *t: compiled_call(*t, recursions, rows=rows), tensors)
    some = [tensor.detach().requires_grad_(i + 1 == wanted) for i, tensor in enumerate(tensors)]
    value = compiled_call(*some, recursions, rows=rows)
    (value * torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)).sum().backward()
    assert torch.equal(value, every[0])
    assert torch.equal(some[wanted - 1].grad, every[wanted])


@pytest.mark.usefixtures("compiled")
def test_compiled_reads_strided_arguments():
    tensors = [tensor.detach() for tensor in inputs(40, 2, 6)]
    strided = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in tensors]
    assert torch.equal(compiled_call(*strided, 2), compiled_call(*tensors, 2))


@pytest.mark.parametrize("rows", ["all", "repeated"])
@pytest.mark.usefixtures("compiled")
def test_compiled_derivatives_of_first_and_second_order(rows):
    tensors, rows = inputs(5, 2, 3), wanted_rows(rows, 5)
    assert torch.autograd.gradcheck(lambda *t: compiled_call(*t, 2, 0.1, rows), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: compiled_call(*t, 2, 0.1, rows), tensors)


@pytest.mark.parametrize(
    ("rows", "differentiated", "kept"), [("all", (0, 1, 2, 3, 4), 2), ("repeated", (1, 3), 2), ("repeated", (), 0)]
)
@pytest.mark.usefixtures("compiled")
def test_operators_are_registered_as_torch_wants(rows, differentiated, kept):
    tensors, rows = inputs(7, 2, 3), wanted_rows(rows, 7)
    tensors = [tensor.detach().requires_grad_(i in differentiated) for i, tensor in enumerate(tensors)]
    forward = torch.ops.crane_kernels.recursive_cross_modal_attention.default
    backward = torch.ops.crane_kernels.recursive_cross_modal_attention_backward.default
    torch.library.opcheck(forward, (*tensors, rows, 3, 0.2, kept))
    with torch.no_grad():
        result, *saved = forward(*tensors, rows, 3, 0.2, kept)
    torch.library.opcheck(backward, (torch.ones_like(result), *tensors, rows, *saved, 0.2, 0 in differentiated))


@pytest.mark.parametrize("rows", ["all", "repeated"])
@pytest.mark.usefixtures("compiled")
def test_torch_compile_gives_the_same_bits_for_any_number_of_rows(rows):
    compiled = torch.compile(lambda *t, rows: recursive_cross_modal_attention(*t, 2, rows=rows), fullgraph=True)
    for n in (30, 41):
        tensors, indices = inputs(n, 2, 8, torch.float32), wanted_rows(rows, n)
        found, expected = (
            value_and_gradients(lambda *t, f=f, i=indices: f(*t, rows=i), tensors)
            for f in (compiled, lambda *t, rows: compiled_call(*t, 2, rows=rows))
        )
        assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("compiled")
def test_exports():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return recursive_cross_modal_attention(*tensors, 2)

    tensors = tuple(tensor.detach() for tensor in inputs(30, 2, 8, torch.float32))
    program = torch.export.export(Module(), tensors)
    assert "crane_kernels.recursive_cross_modal_attention" in str(program.graph)
    assert torch.equal(program.module()(*tensors), compiled_call(*tensors, 2))


@pytest.mark.usefixtures("compiled")
def test_compiled_refuses_half_precision():
    tensors = inputs(3, 2, 4, torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"x has dtype torch\.bfloat16, not float32 or float64"):
        compiled_call(*tensors, 1)
