"""Recursive cross-modal attention by Triton kernels: values, gradients, bytes, launches, against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from comparison import assert_as_good_as_plain, operators, root_mean_square, value_and_gradients, worst
from interpreter import counted
from torch import Tensor

from crane_kernels import dispatch, recursive_cross_modal_attention, triton_support
from crane_kernels.recursive_cross_modal_attention import reference
from crane_kernels.recursive_cross_modal_attention import triton as kernels
from crane_kernels.recursive_cross_modal_attention import triton_wide as wide
from crane_kernels.recursive_cross_modal_attention.triton import (
    FORWARD_PROGRAMS,
    SMALLEST_CHUNK,
    chunks,
    rca_forward,
    tanh,
)
from crane_kernels.triton_support import DTYPES

NAMES = ("value", "x", "w_joint", "b_joint", "w_attend", "w_out")


def inputs(
    n: int, modalities: int, d: int, dtype: torch.dtype = torch.float32, device: str = "cpu", size: float = 1.0
) -> list[Tensor]:
    """Features of that size, and weights scaled by their fan-in, as in training."""
    generator = torch.Generator().manual_seed(n + modalities)
    shapes = ((n, modalities, d), (modalities * d, d), (d,), (modalities, d, d), (modalities, d, d))
    sizes = (size, (modalities * d) ** -0.5, 1, d**-0.5, d**-0.5)
    return [
        (torch.randn(shape, generator=generator) * factor).to(device, dtype).requires_grad_()
        for shape, factor in zip(shapes, sizes, strict=True)
    ]


def assert_right(tensors: list[Tensor], recursions: int, scale: float | None = None, **options: object) -> list[Tensor]:
    """Value and gradients are as near to float64's as plain PyTorch's in the same dtype; returns ours.

    Plain PyTorch has two forms, which round differently: its error is the greater of theirs. In float32 the value's
    error comes from the few numbers of the correlations, which all rows share: its maximum is but one draw.
    """

    def ours(*leaves: Tensor) -> Tensor:
        return recursive_cross_modal_attention(*leaves, recursions, scale, implementation="triton", **options)

    def plain(form: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
        n, _, d = leaves[0].shape
        factor = scale or 1 / math.sqrt(d * max(n, 1))
        return value_and_gradients(lambda *t: form(*t, recursions, factor, options.get("rows")), leaves)

    found = value_and_gradients(ours, tensors)
    exact = plain(reference.gram_form, [t.detach().double().requires_grad_(t.requires_grad) for t in tensors])
    forms = [plain(form, tensors) for form in (reference.gram_form, reference.direct_form)]
    theirs = [
        max(results, key=lambda result, truth=truth: root_mean_square(result, truth))
        for *results, truth in zip(*forms, exact, strict=True)
    ]
    names = ["value"] + [name for name, t in zip(NAMES[1:], tensors, strict=True) if t.requires_grad]
    of_value = root_mean_square if tensors[0].dtype == torch.float32 else worst
    assert_as_good_as_plain(found, theirs, exact, names, of_value, root_mean_square)
    return found


@pytest.mark.parametrize(
    ("n", "modalities", "d"), [(0, 2, 16), (1, 1, 16), (15, 2, 40), (33, 3, 17), (21, 4, 16), (300, 2, 64)]
)
def test_value_and_gradients(n: int, modalities: int, d: int, device: str):
    assert_right(inputs(n, modalities, d, device=device), 2)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger tiles in the interpreter, which takes as long for a small one."""
    if triton_support.interpreting():
        rows = [triton_support.config(8, 1, BLOCK=wide.BLOCK, BYTES=1024)]
        small = [triton_support.config(8, 1, ROWS=64, TILE=128, BYTES=1024)]
        for name, kernel in (vars(kernels) | vars(wide)).items():
            if name.startswith("rca_wide"):
                monkeypatch.setattr(kernel, "configs", rows)
            elif name in ("rca_correlation_kernel", "rca_correlation_gradient_kernel", "rca_moments_gradient_kernel"):
                monkeypatch.setattr(kernel, "configs", small)


@pytest.mark.parametrize(
    ("n", "modalities", "d", "recursions"),
    [(0, 2, 100, 2), (1, 1, 256, 1), (65, 2, 100, 2), (5, 3, 65, 1), (537, 3, 33, 1), (3, 4, 256, 1)],
)
def test_wide(coarse: None, n: int, modalities: int, d: int, recursions: int, device: str):
    assert_right(inputs(n, modalities, d, device=device), recursions)


def test_wide_in_the_tiles_of_devices(device: str):
    assert_right(inputs(70, 3, 33, device=device), 2)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("n", "modalities", "d"), [(300, 1, 65), (70, 3, 33)])
def test_wide_in_half_precision(coarse: None, n: int, modalities: int, d: int, dtype: torch.dtype, device: str):
    assert_right(inputs(n, modalities, d, dtype, device), 2)


def test_wide_with_low_memory_repeats_exactly(coarse: None, device: str):
    tensors = inputs(70, 3, 33, device=device)
    fast = assert_right(tensors, 3)
    low = assert_right(tensors, 3, memory="low")
    assert all(map(torch.equal, fast, low))


def test_wide_saturating(coarse: None, device: str):
    assert_right(inputs(40, 2, 70, device=device, size=30.0), 1, 1.0)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("n", "modalities", "d"), [(0, 1, 16), (400, 2, 16), (200, 2, 40)])
def test_half_precision(n: int, modalities: int, d: int, dtype: torch.dtype, device: str):
    assert_right(inputs(n, modalities, d, dtype, device), 2)


@pytest.mark.parametrize("recursions", [0, 1, 3])
def test_recursions(recursions: int, device: str):
    tensors = inputs(40, 2, 16, device=device)
    if recursions:
        assert_right(tensors, recursions)
    else:
        assert torch.equal(recursive_cross_modal_attention(*tensors, 0, implementation="triton"), tensors[0])


def test_more_rows_than_a_grids_second_axis_may_have(device: str, monkeypatch: pytest.MonkeyPatch):
    if triton_support.interpreting():  # which takes a while for each tile, however many its rows
        for kernel in (kernels.rca_gram_kernel, kernels.rca_pass_kernel):
            monkeypatch.setattr(kernel, "configs", [triton_support.config(8, 1, BLOCK=1024)])
        monkeypatch.setattr(kernels, "chunks", lambda n, _: (1024, -(-n // 1024)))
    tensors = [tensor.detach() for tensor in inputs(70_000, 1, 16, device=device)]
    found = recursive_cross_modal_attention(*tensors, 1, implementation="triton")
    exact = reference.gram_form(*(t.double() for t in tensors), 1, 1 / math.sqrt(16 * 70_000))
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_strides(device: str):
    tensors = [tensor.detach() for tensor in inputs(40, 2, 16, device=device)]
    strided = tensors[0].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    turned = tensors[1].T.contiguous().T.requires_grad_()
    found = assert_right([strided, turned, *tensors[2:]], 2)
    straight = assert_right([tensors[0].requires_grad_(), tensors[1].requires_grad_(), *tensors[2:]], 2)
    assert all(map(torch.equal, found, straight))


@pytest.mark.parametrize("size", [1e-39, 1e-20, 30.0, 1e4], ids=["denormal", "tiny", "saturating", "large"])
def test_sizes_of_features(size: float, device: str):
    assert_right(inputs(40, 2, 16, device=device, size=size), 1, 1.0 if size > 1 else None)


def test_dead_relu(device: str):
    x, w_joint, b_joint, w_attend, w_out = (t.detach() for t in inputs(40, 2, 16, device=device))
    x = x.abs()
    # With all weights positive but those of the attention, every attended feature is negative.
    tensors = [x, w_joint.abs(), b_joint.abs(), -w_attend.abs(), w_out]
    found = assert_right([tensor.requires_grad_() for tensor in tensors], 2)
    assert torch.equal(found[0], x)
    assert all(not gradient.any() for gradient in found[2:])


def test_tanh_is_within_two_roundings():
    from interpreter import tl, triton

    @triton.jit
    def tanh_kernel(source, target, SIZE: tl.constexpr):  # noqa: N803
        place = tl.arange(0, SIZE)
        tl.store(target + place, tanh(tl.load(source + place)))

    source = torch.cat([torch.logspace(-40, 38, 4095), torch.tensor([0.0])])
    for sign in (1, -1):
        target = torch.empty_like(source)
        tanh_kernel[(1,)](source * sign, target, 4096)
        exact = torch.tanh(source.double() * sign)
        assert ((target - exact).abs() <= 2.4e-7 * exact.abs()).all()


@pytest.mark.parametrize("wanted", [[], [4], [5, 0, 5, 39]])
@pytest.mark.parametrize("recursions", [0, 1, 3])
def test_wanted_rows(wanted: list[int], recursions: int, device: str):
    rows = torch.tensor(wanted, dtype=torch.int64, device=device)
    tensors = inputs(40, 2, 16, device=device)
    if recursions:
        assert_right(tensors, recursions, rows=rows)
    else:
        found = recursive_cross_modal_attention(*tensors, 0, rows=rows, implementation="triton")
        assert torch.equal(found, tensors[0][rows])


def test_low_memory_gives_the_same_and_keeps_x_alone(device: str):
    tensors = inputs(300, 2, 16, device=device)
    fast = assert_right(tensors, 3)
    low = assert_right(tensors, 3, memory="low")
    assert all(map(torch.equal, fast, low))
    assert rca_forward(*tensors, 3, 0.1, True)[1].shape == (2, 300, 2, 16)
    assert rca_forward(*tensors, 3, 0.1, False)[1].numel() == 0


def test_repeats_exactly(device: str):
    tensors = inputs(700, 2, 16, device=device)
    assert all(map(torch.equal, assert_right(tensors, 2), assert_right(tensors, 2)))


def test_partial_gradients(device: str):
    tensors = [tensor.detach() for tensor in inputs(20, 2, 16, device=device)]
    tensors[3].requires_grad_()
    assert_right(tensors, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_registration(dtype: torch.dtype, device: str):
    # The gradients of the kept features are none, as they are no result.
    leaves = inputs(5, 2, 16, dtype, device)
    for tensors in (leaves, [leaf.detach() for leaf in leaves]):
        torch.library.opcheck(
            rca_forward,
            (*tensors, 2, 0.1, True),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


def test_compiles_without_graph_breaks(device: str):
    tensors = inputs(20, 2, 16, device=device)

    def function(*leaves: Tensor) -> Tensor:
        return recursive_cross_modal_attention(*leaves, 2, implementation="triton") * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        value_and_gradients(compiled, tensors), value_and_gradients(function, tensors), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, device: str):
    tensors = inputs(30, 2, 16, device=device)
    with torch.autocast(device, dtype):
        found = recursive_cross_modal_attention(*tensors, 2, implementation="triton")
    expected = recursive_cross_modal_attention(*(t.to(dtype) for t in tensors), 2, implementation="triton")
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in tensors)


def test_what_serves_a_call_says_why():
    x, *weights = inputs(4, 2, 16)
    choice = dispatch.choose("recursive_cross_modal_attention", None, x, *weights, 2, 0.1)
    assert choice.implementation.name != "triton"
    assert "triton" in choice.rejected
    for modalities, d, text in (
        (5, 32, "5 modalities of width 32, more than the 4 of wide"),
        (1, 257, "width 257, above 256"),
    ):
        with pytest.raises(RuntimeError, match=text):
            recursive_cross_modal_attention(*inputs(4, modalities, d), 2, implementation="triton")


def forward_bytes(n: int, modalities: int, d: int, recursions: int) -> int:
    """What the kernels' docstrings say, in float32: the Gram matrix of X, then correlations and passes."""
    programs = chunks(n, FORWARD_PROGRAMS)[1]
    rows, square, pairs = n * modalities * d, d * d, modalities * (modalities + 1) // 2
    part = pairs * square + modalities * d
    total = modalities * d
    first = rows + programs * part
    # A pair of different modalities serves the correlations of both.
    read = programs * (modalities**2 * square + modalities * d)
    # G, whose parts are summed into memory and read from there.
    correlation = (
        read + 2 * total * total + total + modalities * square + programs_of_small(modalities, d) * (total * d + d)
    )
    passes = 2 * rows + programs * 3 * modalities * square + modalities * square
    return 4 * (first + recursions * (correlation + passes) + (recursions - 1) * programs * part)


def programs_of_small(modalities: int, d: int) -> int:
    """Programs of the kernels of d x d matrices, of 16 rows each."""
    return modalities * d // 16


@pytest.mark.parametrize(("n", "modalities", "d"), [(600, 2, 16), (1000, 1, 32)])
def test_forward_moves_the_bytes_its_docstrings_say(counting: None, n: int, modalities: int, d: int):
    with counted() as traffic:
        rca_forward(*(t.detach() for t in inputs(n, modalities, d)), 3, 0.1, True)
    assert traffic.bytes == forward_bytes(n, modalities, d, 3)


def pass_ratios(n: int, modalities: int, d: int) -> tuple[float, float]:
    """Bytes of a recursion over the fewest, forward and backward, in float32: the module's formulas."""
    rows, square = n * modalities * d, d * d
    programs = chunks(n, FORWARD_PROGRAMS)[1]
    forward = 2 * rows + programs * square * (3 * modalities + modalities * (modalities + 1) // 2 + modalities**2)
    programs = chunks(n, FORWARD_PROGRAMS // modalities)[1]
    backward = (4 + modalities) * rows + programs * modalities * square * (8 + modalities)
    return forward / (2 * rows), backward / (5 * rows)


@pytest.mark.parametrize(
    ("n", "forward", "backward"), [(255_404, 1.1, 1.24), (63_001, 1.4, 1.33), (26_495, 1.82, 1.49)]
)
def test_bytes_over_the_fewest(n: int, forward: float, backward: float):
    """At the nodes of amazon-elec, its items and amazon-baby; the formula is checked against the count above and below.

    Few rows leave each of as many programs little work beside its weights and its part of the sums.
    """
    found = pass_ratios(n, 2, 64)
    print(f"\nbytes over the fewest, N = {n:,}, M = 2, d = 64: forward {found[0]:.3f}, backward {found[1]:.3f}")
    assert found[0] <= forward
    assert found[1] <= backward


def test_kernels_of_rows_move_what_the_ratios_assume(counting: None):
    n, modalities, d = 600, 2, 16
    x, *weights = inputs(n, modalities, d)
    with counted() as traffic:
        recursive_cross_modal_attention(x, *weights, 1, implementation="triton").sum().backward()
    moved = {name: traffic.loaded[name] + traffic.stored[name] for name in traffic.launches}
    rows, square = n * modalities * d, d * d
    programs = chunks(n, FORWARD_PROGRAMS // modalities)[1]
    assert moved["rca_weight_gradients_kernel"] == 4 * (2 * rows + programs * modalities * square * 4)
    assert moved["rca_row_gradients_kernel"] == 4 * (
        (2 + modalities) * rows + programs * modalities * (square * (2 + modalities) + d)
    )
    small = 4 * (rows + square)
    assert moved["rca_correlation_gradient_kernel"] < small
    assert moved["rca_moments_gradient_kernel"] < small


def wide_bytes(n: int, modalities: int, d: int) -> dict[str, int]:
    """What the wide kernels' module says of one recursion, which is the last, in float32; and B for backward."""
    square, rows, tiles = d * d, n * modalities * d, -(-d // wide.BLOCK)

    def parts(programs: int) -> tuple[int, int]:
        chunk, count = chunks(n, programs)
        return count, sum(-(-min(chunk, n - start) // wide.BLOCK) for start in range(0, n, chunk))

    programs, blocks = parts(FORWARD_PROGRAMS)
    backward_programs, backward_blocks = parts(FORWARD_PROGRAMS // modalities)
    pairs = modalities * (modalities + 1) // 2
    row_blocks = -(-n // wide.BLOCK)
    elements = {
        "gram": rows * (modalities * tiles + 2) + programs * (pairs * square + modalities * d),
        "pass": rows * (2 * tiles + 3)
        + blocks * modalities * 2 * square
        + (programs * (2 * tiles + 1) + 1) * modalities * square,
        "weight_gradients": rows * (6 * tiles + 2) + (backward_blocks + backward_programs) * modalities * 2 * square,
        "row_gradients": rows * (tiles + tiles * modalities + 2)
        + row_blocks * modalities * (square * (1 + modalities) + d),
    }
    return {f"rca_wide_{name}_kernel": 4 * count for name, count in elements.items()}


@pytest.mark.parametrize(("n", "modalities", "d"), [(300, 1, 130), (70, 3, 33)])
def test_wide_kernels_move_the_bytes_their_module_says(coarse: None, counting: None, n: int, modalities: int, d: int):
    x, *weights = inputs(n, modalities, d)
    with counted() as traffic:
        recursive_cross_modal_attention(x, *weights, 1, implementation="triton").sum().backward()
    found = {name: traffic.loaded[name] + traffic.stored[name] for name in traffic.launches if "wide" in name}
    assert found == wide_bytes(n, modalities, d)


def test_a_wide_pass_adds_up_its_result_as_the_first_kernel_does(coarse: None, counting: None):
    n, modalities, d = 70, 3, 33
    x, *weights = inputs(n, modalities, d)
    with counted() as traffic:
        rca_forward(*(t.detach() for t in (x, *weights)), 2, 0.1, True)
    found = {name: traffic.loaded[name] + traffic.stored[name] for name in traffic.launches if "wide" in name}
    expected = wide_bytes(n, modalities, d)
    gram, refining = expected["rca_wide_gram_kernel"], expected["rca_wide_pass_kernel"]
    assert found == {"rca_wide_gram_kernel": gram, "rca_wide_pass_kernel": 2 * refining + gram}


def launches(n: int, modalities: int, d: int, memory: str) -> tuple[int, int]:
    """Launches forward and backward with three recursions, fewer than half of eager PyTorch's."""
    x, *weights = inputs(n, modalities, d)
    with counted() as forward:
        result = recursive_cross_modal_attention(x, *weights, 3, memory=memory, implementation="triton")
    with counted() as backward:
        result.sum().backward()
    eager = operators(lambda: reference.direct_form(x, *weights, 3, 0.1).sum().backward())
    found = forward.launches.total(), backward.launches.total()
    print(f"\nlaunches, R = 3: forward {found[0]}, backward {found[1]}; eager PyTorch both {eager}")
    assert eager > 2 * sum(found)
    return found


def test_launches(counting: None):
    """At most 8 forward and 16 backward with three recursions."""
    assert launches(600, 2, 16, "fast") == (7, 12)
    assert SMALLEST_CHUNK < 600


def test_wide_launches(coarse: None, counting: None):
    """As many, and two more passes where only x was kept."""
    assert launches(3, 3, 33, "low") == (7, 14)
