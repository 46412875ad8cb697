"""Modality attention by Triton kernels: values, gradients and bytes, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from comparison import assert_as_good_as_plain, root_mean_square, value_and_gradients, worst
from interpreter import counted
from torch import Tensor

from crane_kernels import dispatch, modality_attention, triton_support
from crane_kernels.modality_attention import triton as kernels
from crane_kernels.modality_attention.triton import chunks, fits, in_passes

NAMES = ("value", "tokens", "in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias")
HALVES = (torch.bfloat16, torch.float16)

Leaves = list[Tensor | None]


def inputs(
    n: int, count: int, d: int, bias: bool = True, dtype: torch.dtype = torch.float32, device: str = "cpu",
    size: float = 1.0,
) -> Leaves:  # fmt: skip
    """Tokens of that size, and weights scaled by their fan-in so that scores of tokens of size one are about one."""
    generator = torch.Generator().manual_seed(n + count + d)
    shapes = ((n, count, d), (3 * d, d), (3 * d,), (d, d), (d,))
    sizes = (size, d**-0.5, 1, d**-0.5, 1)
    made = [torch.randn(shape, generator=generator) * factor for shape, factor in zip(shapes, sizes, strict=True)]
    leaves = [tensor.to(device, dtype).requires_grad_() for tensor in made]
    return [leaf if bias or leaf.dim() > 1 else None for leaf in leaves]


def results(arguments: Leaves, heads: int, implementation: str) -> list[Tensor]:
    """The value and the gradients of the tensors that require one."""

    def call(*present: Tensor) -> Tensor:
        given = iter(present)
        return modality_attention(
            *(None if argument is None else next(given) for argument in arguments), heads, implementation=implementation
        )

    return value_and_gradients(call, [argument for argument in arguments if argument is not None])


def assert_right(arguments: Leaves, heads: int) -> list[Tensor]:
    """Value and gradients are as near to float64's as plain PyTorch's in the same dtype; returns ours."""
    found = results(arguments, heads, "triton")
    plain = results(arguments, heads, "reference")
    double = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in arguments]
    exact = results(double, heads, "reference")
    wanted = [name for name, t in zip(NAMES[1:], arguments, strict=True) if t is not None and t.requires_grad]
    # In float32 a maximum of so few roundings is but one draw.
    measure = root_mean_square if arguments[0].dtype == torch.float32 else worst
    assert_as_good_as_plain(found, plain, exact, ["value", *wanted], measure, measure)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("n", "count", "d", "heads"),
    [
        (0, 2, 16, 4),
        (1, 1, 16, 16),
        (37, 2, 64, 4),
        (66, 3, 40, 5),
        (33, 4, 24, 3),
        (20, 3, 17, 1),
        (9, 4, 64, 4),
        (18, 3, 16, 2),
        (15, 2, 100, 4),
        (5, 3, 256, 2),
    ],
)
def test_value_and_gradients(n: int, count: int, d: int, heads: int, bias: bool, device: str):
    assert_right(inputs(n, count, d, bias, device=device), heads)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("n", "count", "d", "heads"),
    [
        (0, 1, 16, 2),
        (1, 2, 16, 1),
        (90, 2, 40, 4),
        (131, 2, 64, 4),
        (65, 1, 33, 3),
        (37, 2, 18, 9),
        (70, 2, 15, 5),
        (17, 2, 27, 9),
        (70, 4, 64, 8),
        (30, 2, 128, 2),
    ],
)
def test_half_precision(n: int, count: int, d: int, heads: int, bias: bool, dtype: torch.dtype, device: str):
    assert_right(inputs(n, count, d, bias, dtype, device), heads)


def test_backward_in_passes_gives_the_same_as_in_parts(device: str, monkeypatch: pytest.MonkeyPatch):
    arguments = inputs(200, 2, 40, dtype=torch.float16, device=device)
    passes = results(arguments, 4, "triton")
    monkeypatch.setattr(kernels, "in_passes", lambda *_: False)
    for found, expected in zip(passes, results(arguments, 4, "triton"), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [1e-39, 1e-20, 30.0, 1e4], ids=["denormal", "tiny", "saturating", "large"])
def test_sizes_of_tokens(size: float, device: str):
    assert_right(inputs(40, 3, 16, device=device, size=size), 2)


def test_the_forward_in_parts_gives_the_same(device: str, monkeypatch: pytest.MonkeyPatch):
    arguments = inputs(70, 2, 24, device=device)
    whole = assert_right(arguments, 4)
    monkeypatch.setattr(kernels, "fits", lambda *_: False)
    torch.testing.assert_close(assert_right(arguments, 4)[0], whole[0], rtol=1e-4, atol=1e-5)


def test_what_backward_passes_serve():
    assert in_passes(torch.float16, 64, 2, 4)
    assert in_passes(torch.bfloat16, 33, 1, 3)
    assert not in_passes(torch.float16, 65, 2, 5)
    assert not in_passes(torch.float16, 16, 3, 4)
    assert not in_passes(torch.float32, 16, 2, 4)


def test_what_fits_one_kernel():
    assert fits(torch.float32, 64, 2, 4)
    assert fits(torch.float32, 16, 4, 4)
    assert fits(torch.float16, 64, 4, 8)
    assert not fits(torch.float32, 17, 3, 1)
    assert not fits(torch.float16, 65, 1, 5)
    assert not fits(torch.float16, 63, 2, 7)  # seven heads of nine features are eight of sixteen places


def test_strides(device: str):
    tokens, weight, *rest = (t.detach() for t in inputs(40, 2, 16, device=device))
    strided = [tokens.transpose(0, 2).contiguous().transpose(0, 2), weight.T.contiguous().T, *rest]
    found = assert_right([t.requires_grad_() for t in strided], 4)
    straight = assert_right([t.requires_grad_() for t in (tokens, weight, *rest)], 4)
    torch.testing.assert_close(found, straight)
    assert torch.equal(found[0], straight[0])


def test_repeats_exactly(device: str):
    arguments = inputs(200, 2, 16, device=device)
    assert all(map(torch.equal, assert_right(arguments, 4), assert_right(arguments, 4)))


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (3, 4)])
def test_partial_gradients(frozen: tuple[int, ...], device: str):
    arguments = inputs(20, 2, 16, device=device)
    for place in frozen:
        arguments[place].requires_grad_(False)
    assert_right(arguments, 4)


def test_gradients_have_gradients(device: str):
    seconds = []
    for implementation in ("triton", "reference"):
        arguments = inputs(12, 2, 16, device=device)
        value = modality_attention(*arguments, 4, implementation=implementation)
        (first,) = torch.autograd.grad(value.square().sum(), arguments[:1], create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), arguments[:4]))
    torch.testing.assert_close(*seconds, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "whole"), [(torch.float32, True), (torch.float32, False), (torch.float16, True)])
def test_more_rows_than_a_grids_second_axis_may_have(
    dtype: torch.dtype, whole: bool, device: str, monkeypatch: pytest.MonkeyPatch
):
    if triton_support.interpreting():  # which takes a while for each tile, however many its rows
        wide = [triton_support.config(8, 1, BLOCK=1024)]
        monkeypatch.setattr(kernels.modality_attention_fwd_kernel, "configs", wide)
        monkeypatch.setattr(kernels.modality_attention_row_gradients_kernel, "configs", wide)
        monkeypatch.setattr(kernels.modality_attention_weight_gradients_kernel, "configs", wide)
        monkeypatch.setattr(kernels, "TILE", 16 * 1024)
    if not whole:
        monkeypatch.setattr(kernels, "fits", lambda *_: False)
    arguments = inputs(70_000, 2, 16, dtype=dtype, device=device)
    assert_right(arguments, 4)


@pytest.mark.parametrize("dtype", triton_support.DTYPES, ids=str)
def test_registration(dtype: torch.dtype, device: str):
    arguments = inputs(5, 2, 16, dtype=dtype, device=device)
    torch.library.opcheck(torch.ops.crane_kernels.modality_attention_triton.default, (*arguments, 4))
    detached = [t.detach() for t in inputs(5, 2, 16, False, dtype, device) if t is not None]
    tokens, in_weight, out_weight = detached
    backward = torch.ops.crane_kernels.modality_attention_triton_backward.default
    torch.library.opcheck(backward, (torch.randn_like(tokens[:, 0]), tokens, in_weight, None, out_weight, None, 4))


@pytest.mark.parametrize("d", [16, 72])
def test_compiles_without_graph_breaks(d: int, device: str):
    arguments = inputs(20, 2, d, device=device)

    def function(*leaves: Tensor) -> Tensor:
        return modality_attention(*leaves, 4, implementation="triton") * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        value_and_gradients(compiled, arguments), value_and_gradients(function, arguments), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast(dtype: torch.dtype, device: str):
    arguments = inputs(30, 2, 16, device=device)
    with torch.autocast(device, dtype):
        found = modality_attention(*arguments, 4, implementation="triton")
    expected = modality_attention(*(t.to(dtype) for t in arguments), 4, implementation="triton")
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in arguments)


@pytest.mark.parametrize(
    ("count", "d", "axis", "text"),
    [
        (2, 16, "items", "axis is 'items', which PyTorch's own fused attention serves"),
        (5, 16, "modalities", "tokens has 5 tokens a row, more than 4"),
        (2, 260, "modalities", "tokens has width 260, above 256"),
    ],
)
def test_what_it_does_not_serve_it_says(count: int, d: int, axis: str, text: str):
    arguments = inputs(3, count, d)
    with pytest.raises(RuntimeError, match=text):
        modality_attention(*arguments, 4, axis, implementation="triton")
    choice = dispatch.choose("modality_attention", None, *arguments, 4, axis)
    assert choice.implementation.name != "triton"
    assert "triton" in choice.rejected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "count", "d", "heads"), [(600, 2, 16, 4), (37, 3, 40, 5)])
def test_bytes_are_as_the_module_says(
    counting: None, monkeypatch: pytest.MonkeyPatch, n: int, count: int, d: int, heads: int, bias: bool
):
    sizes = {"SMALLEST_CHUNK": 16, "FEWEST_PROGRAMS": 4, "PROGRAMS": 4, "BACKWARD_PROGRAMS": 8}
    for name, value in sizes.items():  # so that both numbers of programs show
        monkeypatch.setattr(kernels, name, value)
    arguments = inputs(n, count, d, bias, torch.float16)
    with counted() as traffic:
        value = modality_attention(*arguments, heads, implementation="triton")
    programs = chunks(n, count, d)[1]
    weights = 4 * d * d + (3 * d if bias else 0)
    name = "modality_attention_fwd_kernel"
    assert traffic.loaded == {name: 2 * (n * d * count + programs * weights)}
    assert traffic.stored == {name: 2 * n * d}
    assert traffic.launches == {name: 1}
    with counted() as traffic:
        value.sum().backward()
    if count > 2:
        name = "modality_attention_gradient_kernel"
        assert traffic.loaded == traffic.stored == {name: 2 * n * d * (3 * count + 1)}
        assert traffic.launches == {name: 1}
        return
    programs = triton_support.in_chunks(n, kernels.BACKWARD_PROGRAMS, kernels.SMALLEST_CHUNK)[1]
    assert n < 600 or programs == 8 == 2 * chunks(n, count, d)[1]
    rows, weights = "modality_attention_row_gradients_kernel", "modality_attention_weight_gradients_kernel"
    biases = 2 * d if bias else 0
    assert traffic.loaded == {
        rows: 2 * (n * d * (count + 1) + programs * (7 * d * d + biases)),
        weights: 2 * 2 * (n * d * (count + 1) + programs * (4 * d * d + biases)),
    }
    assert traffic.stored == {rows: 2 * n * d * count, weights: 2 * 4 * programs * (2 * d * d + 2 * d)}
    assert traffic.launches == {rows: 1, weights: 2}


def test_bytes_of_the_forward_in_parts(counting: None):
    with counted() as traffic:
        modality_attention(*inputs(30, 3, 72), 4, implementation="triton")
    name = "modality_attention_context_kernel"
    assert traffic.loaded == {name: 4 * 30 * 72 * 3 * 3}
    assert traffic.stored == {name: 4 * 30 * 72}


@pytest.mark.parametrize(("n", "most"), [(255_404, 1.1), (63_001, 1.1), (26_495, 1.22)])
def test_forward_bytes_over_the_fewest(n: int, most: float):
    """At the nodes of amazon-elec, its items and the nodes of amazon-baby; the formula is checked against the count."""
    count, d = 2, 64
    fewest = n * d * (count + 1)
    found = 1 + chunks(n, count, d)[1] * (4 * d * d + 3 * d) / fewest
    print(f"\nbytes over the fewest, N = {n:,}, M = 2, d = 64: {found:.3f}")
    assert found <= most
