"""Which attention modules ``accelerate`` replaces, that they give the same, and why it leaves others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import CrossModalAttention
from torch import Tensor, nn

from crane_kernels import accelerate
from crane_kernels.integrate.fusion import Plan

D = 16


def fusion(**settings: Any) -> CrossModalAttention:
    torch.manual_seed(0)
    return CrossModalAttention(24, 12, D, **{"swapped": False, **settings})


def features(rows: int = 20) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, width, generator=generator) for width in (24, 12)]


class Summed(CrossModalAttention):
    def forward(self, textual: Tensor, visual: Tensor) -> Tensor:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)])
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].sum(dim=0)


class First(CrossModalAttention):
    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)], dim=1)
        return self.attention(tokens, tokens, tokens)[0][:, 0]


class Weights(CrossModalAttention):
    def forward(self, visual: Tensor, textual: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)], dim=1)
        attended, weights = self.attention(tokens, tokens, tokens)
        return attended.mean(1), weights


class Detached(CrossModalAttention):
    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual).detach()], dim=1)
        return self.attention(tokens, tokens, tokens)[0].mean(1)


class Listed(CrossModalAttention):
    def forward(self, both: list[Tensor]) -> Tensor:
        return super().forward(*both)


class Kept(CrossModalAttention):
    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)], dim=1)
        attended, self.weights = self.attention(tokens, tokens, tokens)
        return attended.mean(1)


class Chunked(CrossModalAttention):
    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        tokens = torch.stack([self.visual_proj(visual), self.textual_proj(textual)], dim=1)
        return torch.cat([self.attention(part, part, part)[0].mean(1) for part in tokens.split(1024)])


class Branching(CrossModalAttention):
    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        result = super().forward(visual, textual)
        return 2 * result if visual.abs().max() > 20 else result


class Flagged(CrossModalAttention):
    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        return getattr(self, "scale", 1) * super().forward(visual, textual)


class Scaled(CrossModalAttention):
    """Projections and an attention, but what comes of them depends on settings."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.temperature = 1.0
        self.drop = nn.Dropout(0.5)

    def forward(self, *features: Tensor) -> Tensor:
        return self.drop(super().forward(*features)) / self.temperature


class Normalised(CrossModalAttention):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.norm = nn.LayerNorm(D)

    def forward(self, visual: Tensor, textual: Tensor) -> Tensor:
        return self.norm(super().forward(visual, textual))


@pytest.mark.parametrize("rows", [0, 1, 2, 20])
@pytest.mark.parametrize("swapped", [False, True])
def test_same_output_and_gradients(swapped: bool, rows: int) -> None:
    plain, ours = fusion(swapped=swapped), fusion(swapped=swapped)
    assert len(accelerate(ours).replaced) == 1
    results = []
    for module in (plain, ours):
        inputs = [x.requires_grad_() for x in features(rows)]
        output = module(*inputs)
        results.append((output, *torch.autograd.grad(output.sin().sum(), [*inputs, *module.parameters()])))
    for theirs, found in zip(*results, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_order_of_arguments_layout_and_sum_are_found() -> None:
    torch.manual_seed(0)
    module = Summed(24, 12, D, swapped=True)
    visual, textual = features()
    expected = module(textual, visual)
    report = accelerate(module)
    assert "attention over modalities, sum over modalities" in report.replaced[0].part
    torch.testing.assert_close(module(textual, visual), expected)
    torch.testing.assert_close(module(visual=visual, textual=textual), expected)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (First(24, 12, D, swapped=False), "its forward computes something else than attention over"),
        (Weights(24, 12, D, swapped=False), "its forward returns tuple, expected one tensor"),
        (Detached(24, 12, D, swapped=False), "its forward computes something else than attention over"),
        (Listed(24, 12, D, swapped=False), "its forward cannot be tried with one matrix for each projection"),
        (Kept(24, 12, D, swapped=False), "its forward sets attributes of the module"),
        (Chunked(24, 12, D, swapped=True), "its forward computes something else for many rows or large features"),
        (Branching(24, 12, D, swapped=False), "its forward computes something else for many rows or large features"),
    ],
    ids=["first", "weights", "detached", "listed", "kept", "chunked", "branching"],
)
def test_left_with_a_reason(module: nn.Module, why: str) -> None:
    report = accelerate(module)
    assert why in report.left[0].why
    assert type(module) in (First, Weights, Detached, Listed, Kept, Chunked, Branching)
    # The attention inside can still be served alone.
    assert [r.path for r in report.replaced] == ["attention"]


def test_an_attribute_that_comes_later_is_seen() -> None:
    torch.manual_seed(0)
    module = Flagged(24, 12, D, swapped=False)
    expected = module(*features())
    assert "attention over modalities" in accelerate(module).replaced[0].part
    module.scale = 3
    torch.testing.assert_close(module(*features()), 3 * expected)


def test_attention_within_an_unknown_module_is_replaced_alone() -> None:
    torch.manual_seed(0)
    module = Normalised(24, 12, D, swapped=False)
    expected = module(*features())
    report = accelerate(module)
    assert [(r.path, r.part) for r in report.replaced] == [("attention", "MultiheadAttention")]
    why = "it is not made of two to four plain projections and one attention alone"
    assert [(entry.part, entry.why) for entry in report.left if entry.part != "sparse products"] == [
        ("Normalised", why)
    ]
    torch.testing.assert_close(module(*features()), expected)


def test_a_forward_of_the_instance_is_left() -> None:
    module = fusion()
    own = module.forward
    module.forward = lambda visual, textual: 2 * own(visual, textual)
    expected = module(*features())
    report = accelerate(module)
    assert (report.left[0].part, report.left[0].why) == (
        "CrossModalAttention",
        "the instance has a forward of its own",
    )
    torch.testing.assert_close(module(*features()), expected)


def test_dropout_runs_the_modules_own_code() -> None:
    plain, ours = fusion(dropout=0.5), fusion(dropout=0.5)
    accelerate(ours)
    outputs = []
    for module in (plain, ours):
        torch.manual_seed(3)
        outputs.append(module(*features()))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(ours.eval()(*features()), plain.eval()(*features()))


def test_hooks_on_the_attention_still_run() -> None:
    module = fusion()
    accelerate(module)
    seen: list[Any] = []
    module.attention.register_forward_hook(lambda *_: seen.append(1))
    module(*features())
    assert seen == [1]


def test_hooks_see_no_trials() -> None:
    module = fusion()
    seen: list[Any] = []
    for part in module.modules():
        part.register_forward_hook(lambda *_: seen.append(1))
    accelerate(module)
    assert not seen


def test_autocast_is_torchs_own() -> None:
    plain, ours = fusion(), fusion()
    accelerate(ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [module(*features()) for module in (plain, ours)]
    assert outputs[0].dtype == outputs[1].dtype
    torch.testing.assert_close(*outputs)


@pytest.fixture
def plans_run(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that serve calls during the test."""
    seen: list[Plan] = []
    run = Plan.__call__

    def record(plan: Plan, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        seen.append(plan)
        return run(plan, module, inputs)

    monkeypatch.setattr(Plan, "__call__", record)
    return seen


def change_temperature(module: Scaled) -> None:
    module.temperature = 0.5


def drop_in_evaluation(module: Scaled) -> None:
    module.drop.train()


def add_zeros(module: Scaled) -> None:
    module.attention = nn.MultiheadAttention(D, 4, add_zero_attn=True, batch_first=True).eval()
    for name, p in module.attention.named_parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(len(name)))


def no_attention(module: Scaled) -> None:
    class Same(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
            return query, None

    module.attention = Same()


def swap_axes(module: Scaled) -> None:
    module.attention.batch_first = False


def patch_forward(module: Scaled) -> None:
    forward = module.attention.forward
    module.attention.forward = lambda *args: (2 * forward(*args)[0], None)


@pytest.mark.parametrize(
    "change", [change_temperature, drop_in_evaluation, add_zeros, no_attention, swap_axes, patch_forward]
)
def test_changes_after_the_trial_are_noticed(change: Callable[[Scaled], None], plans_run: list[Plan]) -> None:
    torch.manual_seed(0)
    ours = Scaled(24, 12, D, swapped=False).eval()
    plain = copy.deepcopy(ours)
    assert [r.path for r in accelerate(ours).replaced] == [""]
    plans_run.clear()
    ours(*features())
    assert len(plans_run) == 1
    outputs = []
    for module in (plain, ours):
        change(module)
        torch.manual_seed(1)
        outputs.append(module(*features()))
    torch.testing.assert_close(outputs[1], outputs[0])
    assert len(plans_run) == 1


def test_hooks_on_all_modules_still_run() -> None:
    module = fusion()
    accelerate(module)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda part, *_: seen.append(part))
    try:
        module(*features())
    finally:
        handle.remove()
    assert module.attention in seen


def test_accelerated_within_inference_mode(plans_run: list[Plan]) -> None:
    module = fusion()
    with torch.inference_mode():
        assert [r.path for r in accelerate(module).replaced] == [""]
        plans_run.clear()
        module(*features())
    assert len(plans_run) == 1


def test_shapes_on_the_meta_device() -> None:
    modules = [fusion(), nn.MultiheadAttention(D, 4, batch_first=True)]
    for module in modules:
        accelerate(module)
        module.to("meta")
    visual, textual = (x.to("meta") for x in features())
    assert modules[0](visual, textual).shape == (20, D)
    x = torch.empty(20, 2, D, device="meta")
    assert modules[1](x, x, x)[0].shape == (20, 2, D)


@pytest.mark.parametrize("swapped", [False, True])
def test_transforms_of_functions(swapped: bool) -> None:
    plain, ours = fusion(swapped=swapped), fusion(swapped=swapped)
    accelerate(ours)
    visual, textual = features()
    outputs = [torch.func.grad(lambda x, m=module: m(x, textual).sin().sum())(visual) for module in (plain, ours)]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 9])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(batch_first: bool, tokens: int, need_weights: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(D, 4, batch_first=batch_first)
    x = torch.randn(*((20, tokens) if batch_first else (tokens, 20)), D, requires_grad=True)
    expected, weights = module(x, x, x, need_weights=need_weights)
    (gradient,) = torch.autograd.grad(expected.sin().sum(), x)
    assert len(accelerate(module).replaced) == 1
    found, found_weights = module(x, x, x, need_weights=need_weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), x)[0], gradient)
    assert (found_weights is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(found_weights, weights)


def test_multihead_attention_with_masks_and_other_keys() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(D, 4, batch_first=True)
    x, y = torch.randn(20, 3, D), torch.randn(20, 5, D)
    mask = torch.ones(3, 3).triu(1).bool()
    calls = [
        lambda: module(x, x, x, attn_mask=mask),
        lambda: module(x, x, x, key_padding_mask=torch.zeros(20, 3).bool()),
        lambda: module(x, y, y),
        lambda: module(x, x, x, average_attn_weights=False),
        lambda: module(x[0], x[0], x[0]),
    ]
    expected = [call() for call in calls]
    accelerate(module)
    for call, (output, weights) in zip(calls, expected, strict=True):
        torch.testing.assert_close(call()[0], output)
        torch.testing.assert_close(call()[1], weights)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.MultiheadAttention(D, 4, kdim=8), "its keys and values have widths of their own"),
        (nn.MultiheadAttention(D, 4, add_bias_kv=True), "it adds keys of its own"),
        (nn.MultiheadAttention(D, 4, add_zero_attn=True), "it adds keys of its own"),
    ],
    ids=["kdim", "bias", "zero"],
)
def test_multihead_attention_left(module: nn.Module, why: str) -> None:
    report = accelerate(module)
    assert not report.replaced
    assert why in report.left[0].why
