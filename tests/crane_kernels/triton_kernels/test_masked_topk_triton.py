"""The ranking kernel against a sort, with ties, users who have seen everything, and counted bytes."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from comparison import assert_as_good_as_plain
from interpreter import counted, tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from crane_kernels import Graph, masked_topk, triton_support
from crane_kernels.masked_topk import triton as kernels
from crane_kernels.masked_topk.triton import MOST

DTYPES = triton_support.DTYPES


def tables(n_users: int, n_items: int, width: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Small integers: scores are exact, and many are equal."""
    generator = torch.Generator().manual_seed(n_items)
    return [torch.randint(-2, 3, (n, width), generator=generator).to(device, dtype) for n in (n_users, n_items)]


def random_graph(n_users: int, n_items: int, density: float, device: str) -> Graph:
    mask = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(1)) < density
    if n_users > 1:
        mask[1] = True  # who has seen everything
    row, col = mask.nonzero().T
    return Graph.from_edges(row, col, shape=(n_users, n_items)).to(device)


def compare(user: torch.Tensor, item: torch.Tensor, seen: Graph | None, k: int) -> None:
    found = masked_topk(user, item, seen, k, implementation="triton")
    expected = masked_topk(user, item, seen, k, implementation="reference")
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])
    assert found[1].dtype == torch.int64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_users", "n_items", "width"), [(1, 1, 16), (17, 7, 3), (35, 70, 33), (18, 50, 256)])
def test_equals_the_reference(n_users, n_items, width, dtype, device):
    user, item = tables(n_users, n_items, width, dtype, device)
    for density, k in ((0.0, 5), (0.3, 1), (0.3, 20), (0.95, 4)):
        compare(user, item, random_graph(n_users, n_items, density, device), k)


def test_more_wanted_than_there_are(device):
    user, item = tables(9, 30, 5, torch.float32, device)
    compare(user, item, None, 60)
    compare(user, item, random_graph(9, 30, 0.5, device), MOST)
    with pytest.raises(RuntimeError, match=f"k is {MOST + 1}, above {MOST}"):
        masked_topk(user, item, None, MOST + 1, implementation="triton")


def test_all_scores_equal(device):
    user, item = torch.zeros(20, 2, device=device), torch.ones(200, 2, device=device)
    user[3] = -0.0  # zeros of either sign are equal
    _, indices = masked_topk(user, item * torch.tensor([1.0, -1.0], device=device), None, 10, implementation="triton")
    assert torch.equal(indices, torch.arange(10, device=device).expand(20, 10))


@pytest.mark.parametrize(("n_users", "n_items"), [(0, 4), (4, 0)])
def test_no_users_or_no_items(n_users, n_items, device):
    compare(torch.zeros(n_users, 2, device=device), torch.zeros(n_items, 2, device=device), None, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_scores(dtype, device):
    """Scores and the exact scores of the chosen items are as near the best exact scores as plain PyTorch's."""
    generator = torch.Generator().manual_seed(5)
    user, item = (torch.randn(n, 64, generator=generator).to(device, dtype) for n in (20, 100))
    seen = random_graph(20, 100, 0.2, device)
    exact = user.double() @ item.double().T
    exact[seen.to_dense().bool()] = -math.inf
    best = exact.sort(dim=1, descending=True).values[:, :15]
    kept = best.isfinite()
    scores, indices = masked_topk(user, item, seen, 15, implementation="triton")
    plain, _ = masked_topk(user, item, seen, 15, implementation="reference")
    assert torch.equal(indices >= 0, kept)
    chosen = exact.gather(1, indices.clamp_min(0))[kept].to(dtype)
    assert_as_good_as_plain([scores[kept]], [plain[kept]], [best[kept]], ["scores"])
    assert_as_good_as_plain([chosen], [plain[kept]], [best[kept]], ["exact scores of the chosen"])


def test_scores_that_overflow_half_precision(device):
    user = torch.tensor([[60000.0], [-60000.0]], device=device, dtype=torch.float16)
    item = torch.tensor([[1.0], [60000.0], [2.0]], device=device, dtype=torch.float16)
    compare(user, item, None, 3)


def test_large_and_denormal_scores(device):
    user = torch.tensor([[1e-30], [1e19]], device=device)
    item = torch.tensor([[1e-10], [-1e-10], [1e19], [3e-12], [-1e19]], device=device)
    compare(user, item, None, 5)


def test_last_block_of_more_than_65536_users(counting, monkeypatch):
    n_users, block = 65_570, kernels.BLOCK_M
    user, item = tables(n_users, 40, 4, torch.float32, "cpu")
    seen = random_graph(n_users, 40, 0.4, "cpu")
    scores, indices = torch.full((n_users, 3), torch.nan), torch.full((n_users, 3), -7)
    last = TensorHandle(np.array([n_users // block], dtype=np.int32), tl.int32)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", lambda *_: last)
    arguments = (user, item, seen.rowptr, seen.col, scores, indices, n_users, 40, 4, 3)
    sizes = {"BLOCK_K": 16, "BLOCK_M": block, "BLOCK_N": kernels.BLOCK_N, "BLOCK_D": 16}
    kernels.masked_topk_kernel[(1,)](*arguments, HAS_SEEN=True, PRECISION="ieee", **sizes)
    expected = masked_topk(user, item, seen, 3, implementation="reference")
    begin = n_users // block * block
    assert torch.equal(scores[begin:], expected[0][begin:])
    assert torch.equal(indices[begin:], expected[1][begin:])
    assert (indices[:begin] == -7).all()


@pytest.mark.parametrize("seen", [False, True])
def test_bytes_are_as_the_tiling_predicts(seen, device, counting):
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        user, item = tables(50, 130, 40, dtype, device)
        graph = random_graph(50, 130, 0.4, device) if seen else None
        blocks = -(-50 // kernels.BLOCK_M)
        with counted() as traffic:
            masked_topk(user, item, graph, 7, implementation="triton")
        of_graph = 16 * 50 + 4 * graph.col.numel() if graph is not None else 0
        assert traffic.loaded == {"masked_topk_kernel": size * 40 * (50 + blocks * 130) + of_graph}
        assert traffic.stored == {"masked_topk_kernel": (size + 8) * 50 * 7}
        assert traffic.launches == {"masked_topk_kernel": 1}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operator_is_registered_as_torch_demands(dtype, device):
    user, item = tables(9, 20, 4, dtype, device)
    graph = random_graph(9, 20, 0.3, device)
    for arrays in ((None, None), (graph.rowptr, graph.col)):
        torch.library.opcheck(torch.ops.crane_kernels.masked_topk_triton.default, (user, item, *arrays, 3))


def test_compiles_without_graph_breaks(device):
    user, item = tables(9, 20, 4, torch.float32, device)
    for seen in (None, random_graph(9, 20, 0.3, device)):
        ranked = partial(masked_topk, seen=seen, k=3, implementation="triton")
        compiled = torch.compile(ranked, fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(user, item), ranked(user, item)))
