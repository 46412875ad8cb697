"""Three recursions over the nodes of a data set, two modalities, against the formulas as they are written."""

from __future__ import annotations

from functools import partial
from typing import Any

import memory
import peers
import pytest
import scales
import torch
from machine import Work
from measuring import Measure
from torch import Tensor

from crane_kernels import recursive_cross_modal_attention
from crane_kernels.recursive_cross_modal_attention import reference

OPERATION = "recursive_cross_modal_attention"
SCALES = ("baby", "sports")
MODALITIES, DIM, RECURSIONS = 2, 64, 3
DIRECT, GRAM = "direct form in plain PyTorch", "Gram form in plain PyTorch"
HOLDS = {DIRECT: 23, GRAM: 14}  # times the bytes of x, forward and backward
FASTER, SMALLER = 1.5, 2.0  # than the direct form on the CPU, forward and backward at the scale "baby"


def tensors(n: int, device: str) -> tuple[Tensor, ...]:
    """Features and weights of the sizes that training begins with."""
    generator = torch.Generator().manual_seed(0)
    weights = (MODALITIES * DIM, DIM), (DIM,), (MODALITIES, DIM, DIM)
    x, w_joint, b_joint, w_attend, w_out = (
        torch.randn(shape, generator=generator) * DIM**-0.5
        for shape in ((n, MODALITIES, DIM), *weights, (MODALITIES, DIM, DIM))
    )
    w_out /= 10
    return tuple(t.to(device).requires_grad_() for t in (x, w_joint, b_joint, w_attend, w_out))


def least_work(x: Tensor, backward: bool) -> Work:
    """A recursion reads X and writes X; backward reads X and its gradient and writes that."""
    columns, products = MODALITIES * DIM, 2 * x.numel() * DIM
    gram = x.shape[0] * columns * columns  # one half of a symmetric product
    forward = Work(2 * x.nbytes, 0, 2 * products + gram)
    return Work(5 * x.nbytes, 0, forward.flops + 5 * products + 2 * gram) if backward else forward


def agree(ours: Any, theirs: Any) -> None:
    """Equal in root mean square: where rounding decides a sign, relu passes the gradient in one form only."""
    for a, b in zip(*(result if isinstance(result, tuple) else (result,) for result in (ours, theirs)), strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm()


def where_it_fits(name: str, form: peers.Function, x: Tensor) -> peers.Function | str:
    """The peer, or why it is not run."""
    need, there = HOLDS[name] * x.nbytes, memory.available(x.device.type)
    return form if need < there else f"holds {need / 1e9:.0f} GB, of which {there / 1e9:.0f} are there"


@pytest.mark.parametrize("case", peers.CASES)
def test_recursive_cross_modal_attention(
    scale: str, case: str, measure: Measure, device: str, requested: str | None, not_compiled: str | None
) -> None:
    size, backward = scales.SIZES[scale], case == peers.BACKWARD
    n = size.users + size.items
    inputs = tensors(n, device)
    rest = RECURSIONS, (DIM * n) ** -0.5

    def bound(form: peers.Function | str) -> peers.Function | str:
        return form if isinstance(form, str) else lambda *inputs: form(*inputs, *rest)

    others = {
        DIRECT: where_it_fits(DIRECT, reference.direct_form, inputs[0]),
        "direct form, torch.compile": not_compiled or peers.compiled(reference.direct_form),
        GRAM: where_it_fits(GRAM, reference.gram_form, inputs[0]),
    }
    ours = partial(recursive_cross_modal_attention, implementation=requested)
    measure(
        peers.run(bound(ours), inputs, case),
        {name: peers.run(bound(other), inputs, case) for name, other in others.items()},
        case=case,
        size=n,
        unit="nodes",
        work=least_work(inputs[0], backward).times(RECURSIONS),
        agree=agree,
    )
    if backward and device == "cpu" and scale == "baby":
        require_bounds(measure)


def require_bounds(measure: Measure) -> None:
    """Peak memory is what it is on any machine; times are held to their ratio where that is asked for."""
    found = measure.benchmark.extra_info
    if found["implementation"] != "cpp":
        return
    if found["peak_bytes"]:
        assert found["peers"][DIRECT]["peak_bytes"] >= SMALLER * found["peak_bytes"]
    measure.at_least(DIRECT, FASTER)
