"""Modality attention against ``torch.nn.MultiheadAttention`` in float64, and its life under torch's tools."""

import address_space
import instruction_sets
import pytest
import torch
from torch import nn, profiler
from torch.nn.attention import SDPBackend, sdpa_kernel

from crane_kernels import dispatch, extension, modality_attention
from crane_kernels.modality_attention import cpp, items
from crane_kernels.nn import ModalityAttention

DTYPES = (torch.float32, torch.float64)


@pytest.fixture(params=["reference", "cpp"])
def implementation(request):
    """Each implementation in turn."""
    reason = extension.missing() if request.param == "cpp" else None
    if reason is not None:
        pytest.skip(reason)
    return request.param


def module(d, heads, bias=True):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(d, heads, bias=bias, batch_first=True, dtype=torch.float64)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def weights(attention):
    return attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias


def leaves(n, modalities, d, heads, bias=True, dtype=torch.float64):
    """Random tokens and weights, whose scores are about one, that require gradients."""
    given = [x if x is None else 2 * d**-0.5 * x for x in weights(module(d, heads, bias))]
    tokens = torch.randn(n, modalities, d, dtype=torch.float64)
    return [x if x is None else x.detach().to(dtype).requires_grad_() for x in (tokens, *given)]


def by_multihead_attention(tokens, attention, axis="modalities"):
    """What PyTorch's module gives."""
    if axis == "items":
        tokens = tokens.transpose(0, 1)
    result = attention(tokens, tokens, tokens, need_weights=False)[0]
    return result.mean(0 if axis == "items" else 1)


@pytest.mark.parametrize("axis", ["modalities", "items"])
@pytest.mark.parametrize(("d", "heads"), [(8, 1), (8, 4), (6, 3), (5, 5), (40, 2)])
@pytest.mark.parametrize("modalities", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("n", [1, 13])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_multihead_attention_then_mean(n, modalities, d, heads, bias, axis):
    attention = module(d, heads, bias)
    tokens = torch.randn(n, modalities, d, dtype=torch.float64, requires_grad=True)
    wanted = [tokens, *attention.parameters()]
    expected = by_multihead_attention(tokens, attention, axis)
    found = modality_attention(tokens, *weights(attention), heads, axis)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad(found, wanted, direction), torch.autograd.grad(expected, wanted, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("n", "d", "heads"),
    [(1, 64, 4), (0, 8, 2), (2, 1, 1), (133, 64, 4), (97, 48, 3), (50, 17, 1), (100, 36, 36), (200, 256, 8)],
)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_matches_float64(n, modalities, d, heads, bias, dtype):
    exact = leaves(n, modalities, d, heads, bias)
    given = [x if x is None else x.detach().to(dtype).requires_grad_() for x in exact]
    direction = torch.randn(n, d, dtype=torch.float64)
    results = []
    for arguments, implementation in ((exact, "reference"), (given, "cpp")):
        value = modality_attention(*arguments, heads, implementation=implementation)
        wanted = [x for x in arguments if x is not None]
        results.append([value, *torch.autograd.grad(value, wanted, direction.to(value))])
    for truth, found in zip(*results, strict=True):
        assert found.dtype == dtype
        # The error of an element, in units of the whole's size: entries that cancel are as large as their terms.
        scale = max(1.0, float(truth.detach().abs().max())) if truth.numel() else 1.0
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=100 * torch.finfo(dtype).eps * scale)


@instruction_sets.unless_named
@instruction_sets.each
@pytest.mark.usefixtures("compiled")
def test_every_instruction_set(isa):
    instruction_sets.passes(isa, __file__, "match or bits or number")


@pytest.mark.usefixtures("compiled")
def test_same_bits_for_every_number_of_threads():
    arguments = leaves(5000, 2, 20, 4, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            value = modality_attention(*arguments, 4, implementation="cpp")
            results.append([value, *torch.autograd.grad(value.square().sum(), arguments)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("compiled")
def test_serves_float32_on_the_cpu_and_says_why_not_elsewhere():
    arguments = leaves(3, 2, 4, 2)
    assert dispatch.choose("modality_attention", None, *arguments, 2, "modalities").implementation.name == "cpp"
    for changed, axis, text in (
        (arguments, "items", "axis is 'items' and tokens has dtype torch.float64"),
        (leaves(3, 5, 4, 2), "modalities", "5 tokens a row"),
        ([x.bfloat16() for x in arguments], "modalities", "dtype torch.bfloat16"),
    ):
        with pytest.raises(RuntimeError, match=text):
            modality_attention(*changed, 2, axis, implementation="cpp")


@pytest.mark.parametrize("frozen", range(5))
def test_gradients_of_some(frozen, implementation):
    arguments = leaves(5, 2, 4, 2)
    arguments[frozen].requires_grad_(False)
    wanted = [x for x in arguments if x.requires_grad]
    exact = torch.autograd.grad(modality_attention(*arguments, 2, implementation="reference").sum(), wanted)
    found = torch.autograd.grad(modality_attention(*arguments, 2, implementation=implementation).sum(), wanted)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


def test_strided_tokens(implementation):
    _, *given = leaves(1, 2, 6, 2)
    wide = torch.randn(2, 9, 13, dtype=torch.float64)
    for tokens in (wide.transpose(0, 1)[:, :, 3:9], wide.transpose(0, 1)[::2, :, ::2][..., :6], wide[:, :1, :6]):
        tokens = tokens.expand(-1, 2, -1).detach().requires_grad_()
        found = modality_attention(tokens, *given, 2, implementation=implementation)
        dense = tokens.detach().contiguous().requires_grad_()
        expected = modality_attention(dense, *given, 2, implementation="reference")
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), tokens), torch.autograd.grad(expected.sum(), dense))


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(implementation, modalities, bias):
    arguments = leaves(3, modalities, 4, 2, bias)
    wanted = [x for x in arguments if x is not None]

    def call(*tensors):
        given = iter(tensors)
        return modality_attention(
            *(x if x is None else next(given) for x in arguments), 2, implementation=implementation
        )

    assert torch.autograd.gradcheck(call, wanted)
    assert torch.autograd.gradgradcheck(call, wanted)


def test_gradcheck_across_items():
    assert torch.autograd.gradcheck(lambda *t: modality_attention(*t, 2, "items"), leaves(4, 2, 4, 2))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(dtype, bias):
    arguments = leaves(5, 2, 8, 2, bias, dtype)
    torch.library.opcheck(torch.ops.crane_kernels.modality_attention, (*arguments, 2))
    detached = [x if x is None else x.detach() for x in arguments]
    torch.library.opcheck(
        torch.ops.crane_kernels.modality_attention_backward, (torch.randn(5, 8, dtype=dtype), *detached, 2)
    )


@pytest.mark.parametrize("axis", ["modalities", "items"])
def test_compiles_without_graph_break_and_exports(axis):
    attention = ModalityAttention(8, 2, axis=axis)
    tokens = torch.randn(7, 2, 8, requires_grad=True)
    expected = torch.autograd.grad(attention(tokens).square().sum(), tokens)
    compiled = torch.compile(lambda x: attention(x).square().sum(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(tokens), tokens), expected)
    exported = torch.export.export(attention, (tokens,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    other = torch.randn(11, 2, 8)
    torch.testing.assert_close(exported.module()(other), attention(other))


@pytest.mark.parametrize("axis", ["modalities", "items"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_takes_tokens_and_weights_in_its_dtype(axis, dtype):
    attention = ModalityAttention(8, 2, axis=axis)
    tokens = torch.randn(7, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(tokens.to(dtype))
    half.sum().backward()
    assert half.dtype == torch.bfloat16
    assert attention.in_proj_weight.grad.dtype == torch.float32
    torch.testing.assert_close(half.float(), attention(tokens), rtol=2e-2, atol=2e-2)


def test_autocast_leaves_float64():
    arguments = leaves(7, 2, 8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        value = modality_attention(*arguments, 2)
    assert torch.equal(value, modality_attention(*arguments, 2))


def test_forward_mode_derivative():
    arguments = [x.detach() for x in leaves(3, 2, 4, 2)]
    tangent = torch.randn_like(arguments[0])
    for axis in ("modalities", "items"):
        call = lambda t, axis=axis: modality_attention(t, *arguments[1:], 2, axis)  # noqa: E731
        _, found = torch.func.jvp(call, (arguments[0],), (tangent,))
        step = 1e-6 * tangent
        expected = (call(arguments[0] + step) - call(arguments[0] - step)) / 2e-6
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("axis", ["modalities", "items"])
def test_no_rows(axis):
    arguments = leaves(0, 2, 4, 2)
    value = modality_attention(*arguments, 2, axis)
    assert value.shape == (0, 4)
    gradients = torch.autograd.grad(value.sum(), arguments)
    assert all(not gradient.any() for gradient in gradients)


def test_more_rows_than_65535(implementation):
    tokens, *given = leaves(70_000, 2, 4, 2, dtype=torch.float32)
    found = modality_attention(tokens, *given, 2, implementation=implementation)
    tail = modality_attention(tokens[-5:], *given, 2, implementation=implementation)
    torch.testing.assert_close(found[-5:], tail)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((2, 4, 600, 16), 1.0),
        ((1, 1, 1, 1), 1.0),
        ((0, 2, 5, 8), 1.0),
        ((1, 2, 0, 8), 1.0),
        ((1, 3, 33, 5), 1.0),
        ((2, 1, 1100, 17), 1.0),
        ((1, 1, 70, 70), 1.0),
        ((1, 2, 200, 16), 30.0),
    ],
)
@pytest.mark.usefixtures("compiled", "nan_filled_memory")
def test_compiled_items_match_float64(shape, scale):
    torch.manual_seed(0)
    batch, heads, n, width = shape
    packed = (scale * torch.randn(n, batch, 3, heads, width)).requires_grad_()  # strided, as the projection leaves it
    direction = torch.randn(shape, dtype=torch.float64)
    results = []
    for x, attend in ((packed.double(), items.in_blocks), (packed, cpp._attend_to_items)):
        value = attend(*x.permute(2, 1, 3, 0, 4))
        results.append((value, *torch.autograd.grad(value, packed, direction.to(value.dtype))))
    for truth, found in zip(*results, strict=True):
        limit = max(1.0, float(truth.detach().abs().max())) if truth.numel() else 1.0
        # A score's error is eps times its terms, and moves a weight by as much.
        atol = 100 * torch.finfo(torch.float32).eps * limit * max(1.0, scale**2)
        torch.testing.assert_close(found.double(), truth.double(), rtol=0, atol=atol)


@pytest.mark.usefixtures("compiled")
def test_compiled_items_same_bits_for_every_number_of_threads():
    given = [torch.randn(2, 2, 300, 8, requires_grad=True) for _ in range(3)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            value = cpp._attend_to_items(*given)
            results.append([value, *torch.autograd.grad(value.square().sum(), given)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("compiled")
def test_compiled_items_with_not_a_number():
    query, key, value = torch.randn(3, 1, 1, 40, 8).unbind()
    key[..., 7, 2] = float("nan")
    assert bool(cpp._attend_to_items(query, key, value).isnan().all())
    query[..., 3, :] = float("nan")
    found = cpp._attend_to_items(query, key.nan_to_num(), value)[0, 0].isnan().all(1)
    assert found.nonzero().flatten().tolist() == [3]


@pytest.mark.usefixtures("compiled")
def test_compiled_items_pass_over_keys_that_score_minus_infinity():
    """Also where a whole block of them comes first. Their own gradients are not finite, as the formula has it."""
    query, key, value = torch.rand(3, 1, 2, 700, 5) + 0.1
    key[..., :600, :] = -torch.inf
    expected = items.in_blocks(query.double(), key.double(), value.double())
    torch.testing.assert_close(cpp._attend_to_items(query, key, value).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("compiled")
def test_opcheck_and_gradients_of_gradients_of_items():
    given = [torch.randn(2, 2, 9, 4, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(torch.ops.crane_kernels.items_attention, given)
    saved = [x.detach() for x in given]
    output, log_sum = torch.ops.crane_kernels.items_attention(*saved)
    torch.library.opcheck(
        torch.ops.crane_kernels.items_attention_backward, (torch.randn_like(output), *saved, output, log_sum)
    )
    seconds = []
    for attend in (cpp._attend_to_items, items.in_blocks):
        first = torch.autograd.grad(attend(*given).square().sum(), given[:2], create_graph=True)
        seconds.append(torch.autograd.grad(sum(x.square().sum() for x in first), given))
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("entries", [1, 70, 10**6])
def test_blocks_of_items_change_nothing(monkeypatch, entries):
    monkeypatch.setattr(items, "BLOCK_ENTRIES", entries)
    query, key, value = (torch.randn(2, 3, 11, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    direction = torch.randn(2, 3, 11, 4, dtype=torch.float64)
    results = []
    for attend in (items.in_blocks, items._fused):
        result = attend(query, key, value)
        results.append([result, *torch.autograd.grad(result, (query, key, value), direction)])
    for blocked, fused in zip(*results, strict=True):
        torch.testing.assert_close(blocked, fused)


@pytest.mark.parametrize("allowed", [True, False])
def test_items_never_fall_back_to_the_whole_matrix(allowed):
    """Also where PyTorch was told not to use the kernel that serves here."""
    tokens, *given = leaves(9, 2, 8, 2, dtype=torch.float32)
    backend = SDPBackend.FLASH_ATTENTION if allowed else SDPBackend.MATH
    with sdpa_kernel(backend), profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as profile:
        modality_attention(tokens, *given, 2, "items", implementation="reference").sum().backward()
    names = {event.name for event in profile.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names


MEMORY = """
import torch
from crane_kernels.nn import ModalityAttention
attention, tokens = ModalityAttention(64, 4, axis="items"), torch.randn(6000, 2, 64, requires_grad=True)
attention(tokens[:100]).sum().backward()
def run():
    attention(tokens).sum().backward()
"""


@address_space.measured
def test_memory_of_items_is_no_square():
    inputs = 6000 * 2 * 64 * 4
    assert address_space.taken(MEMORY) < 16 * inputs < 6000 * 6000 * 4


@pytest.mark.parametrize("bias", [True, False])
def test_module_is_multihead_attention(bias):
    torch.manual_seed(3)
    ours = ModalityAttention(12, 3, bias=bias)
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(ours.state_dict()[name], state[name]) for name in state)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(9, 2, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0].mean(1))
    assert "num_heads=3" in repr(ours)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((8, 3), "num_heads: found 3, expected a divisor of embed_dim, 8"), ((8, 2, True, "rows"), "axis: found 'rows'")],
)
def test_module_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        ModalityAttention(*arguments)


def test_large_scores_stay_finite(implementation):
    tokens = 1e4 * torch.randn(2, 3, 4)
    arguments = [tokens.requires_grad_(), *weights(module(4, 2).float())]
    value = modality_attention(*arguments, 2, implementation=implementation)
    exact = modality_attention(*(x.detach().double() for x in arguments), 2, implementation="reference")
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(value.sum(), arguments))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tokens": torch.zeros(3, 4)}, ValueError, "tokens: .* expected three dimensions"),
        ({"tokens": torch.zeros(3, 0, 4)}, ValueError, "tokens: .* at least one token"),
        ({"tokens": None}, TypeError, "tokens: found NoneType"),
        ({"in_proj_weight": torch.zeros(4, 4)}, ValueError, r"in_proj_weight: .* expected \(12, 4\)"),
        ({"in_proj_bias": torch.zeros(4)}, ValueError, r"in_proj_bias: .* expected \(12,\)"),
        ({"out_proj_weight": torch.zeros(4, 4).double()}, TypeError, "out_proj_weight: found dtype torch.float64"),
        ({"out_proj_bias": torch.zeros(3)}, ValueError, r"out_proj_bias: .* expected \(4,\)"),
        ({"num_heads": 3}, ValueError, "num_heads: found 3, expected a divisor of the width 4"),
        ({"num_heads": 0}, ValueError, "num_heads: found 0"),
        ({"num_heads": True}, TypeError, "num_heads: found True"),
        ({"axis": "rows"}, ValueError, "axis: found 'rows', expected one of modalities, items"),
    ],
)
def test_refusals(change, error, text):
    arguments = {
        "tokens": torch.zeros(3, 2, 4),
        "in_proj_weight": torch.zeros(12, 4),
        "in_proj_bias": torch.zeros(12),
        "out_proj_weight": torch.zeros(4, 4),
        "out_proj_bias": torch.zeros(4),
        "num_heads": 2,
    }
    with pytest.raises(error, match=text):
        modality_attention(**{**arguments, **change})


@pytest.mark.usefixtures("compiled")
def test_compiled_gradients_of_biases_keep_their_digits_over_many_rows():
    n, d = 200_000, 16
    generator = torch.Generator().manual_seed(0)
    shapes = (n, 2, d), (3 * d, d), (3 * d,), (d, d), (d,)
    tensors = [torch.randn(shape, generator=generator) / 4 for shape in shapes]
    grad = torch.full((n, d), 0.1)

    def gradients(dtype, implementation):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        value = modality_attention(*leaves, 4, implementation=implementation)
        of_in, of_out = torch.autograd.grad(value, (leaves[2], leaves[4]), grad.to(dtype))
        return of_in[:d].double(), of_in[2 * d :].double(), of_out.double()

    for found, exact in zip(gradients(torch.float32, "cpp"), gradients(torch.float64, "reference"), strict=True):
        torch.testing.assert_close(found, exact, rtol=3e-6, atol=3e-6 * exact.abs().max().item())


def test_the_meta_device():
    shapes = (5, 2, 16), (48, 16), (48,), (16, 16), (16,)
    assert modality_attention(*(torch.empty(shape, device="meta") for shape in shapes), 4).shape == (5, 16)
