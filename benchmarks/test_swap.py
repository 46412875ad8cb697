"""Models written for the MMRec toolbox, before and after ``crane_kernels.accelerate``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import peers
import pytest
import torch
from baseline.authors import CRANE, LightGCN
from baseline.lightgcn import normalized_adjacency
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from crane.data import Dataset
from crane_kernels import accelerate, sparse_mm

OPERATION = "swap"
SCALES, REAL_DATA = ("baby",), True
NOT_AT_LARGEST = ("test_ten_products", "test_training_step")
DIM, BATCH, TEXT_WIDTH = 64, 2048, 384
AT_LEAST = {
    "attention over modalities, 4096-wide images": 1.2,
    "attention over modalities, 192-wide features": 1.8,
    "attention over items, 4096-wide images": 4.0,  # 5.0 at rest, 4.6 beside other load
    "LightGCN": 2.0,
}


@pytest.mark.parametrize("order", ["by rows", "in random order"])
@pytest.mark.parametrize("case", peers.CASES)
def test_ten_products(compare: Callable[..., None], dataset: Dataset, order: str, case: str) -> None:
    """Ten calls for a tensor that was never seen before, as its first epoch makes them."""
    backward = case == peers.BACKWARD
    A = normalized_adjacency(dataset.train.users, dataset.train.items, dataset.n_users, dataset.n_items)
    if order == "in random order":
        shuffled = torch.randperm(A._nnz(), generator=torch.Generator().manual_seed(0))
        A = torch.sparse_coo_tensor(A._indices()[:, shuffled], A._values()[shuffled], A.shape, check_invariants=False)
    x = torch.randn(A.shape[1], DIM, requires_grad=backward)
    grad = torch.randn(A.shape[0], DIM)

    def ten(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        fresh = A.clone()
        for _ in range(10):
            y = multiply(fresh, x)
            if backward:
                torch.autograd.grad(y, x, grad)

    torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))
    at_least = {("by rows", True): 4.0}.get((order, backward), 8.0 if order == "in random order" else 6.0)
    theirs, ours = (functools.partial(ten, multiply) for multiply in (torch.sparse.mm, sparse_mm))
    compare(ours, "torch.sparse.mm", theirs, at_least, f"ten products, entries {order}, {case}", rounds=9)


@pytest.mark.parametrize("form", AT_LEAST)
def test_training_step(
    compare: Callable[..., None],
    benchmark: BenchmarkFixture,
    dataset: Dataset,
    quick: bool,
    in_full: bool,
    form: str,
) -> None:
    """Loss, backward and Adam; memory is the most that a step takes beyond the model and its optimiser (Linux)."""
    if quick and "4096" in form:
        pytest.skip(peers.TOO_LONG)
    if "over items" in form and not in_full:
        pytest.skip("by default left out, as a step of it takes seconds; --scale names the size")
    baseline = build(dataset, form)
    ours = copy.deepcopy(baseline)
    benchmark.extra_info["report"] = str(accelerate(ours))
    steps = [Step(model, dataset) for model in (baseline, ours)]
    for _ in range(1 if quick else 2):
        losses = [step().item() for step in steps]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    compare(steps[1], "before", steps[0], AT_LEAST[form], f"training step, {form}", rounds=5)
    before, after = benchmark.extra_info["peers"]["before"]["peak_bytes"], benchmark.extra_info["peak_bytes"]
    print(f"a step takes {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")
    if "over items" in form and not quick:
        assert after <= before / 4


def build(dataset: Dataset, form: str) -> nn.Module:
    """The model of ``form`` with random features of the widths that the form names."""
    torch.manual_seed(0)
    if form == "LightGCN":
        return LightGCN(dataset, DIM)
    widths = (192, 192) if "192" in form else (4096, TEXT_WIDTH)
    visual, textual = (torch.randn(dataset.n_items, width) for width in widths)
    return CRANE(dataset, visual, textual, over_items="over items" in form, dim=DIM)


class Step:
    """One training step of ``model`` on a batch that stays the same."""

    def __init__(self, model: nn.Module, dataset: Dataset) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(1)
        sizes = (dataset.n_users, dataset.n_items, dataset.n_items)
        self.batch = [torch.randint(size, (BATCH,), generator=generator) for size in sizes]

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.model.calculate_loss(*self.batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()
