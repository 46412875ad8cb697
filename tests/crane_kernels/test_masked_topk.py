"""Masked top-k against a sort in Python; ties, too few items, blocks, refusals."""

import math

import pytest
import torch

from crane_kernels import Graph, extension, masked_topk, use_implementation
from crane_kernels.masked_topk import reference


@pytest.fixture(params=["reference", "cpp"], autouse=True)
def _implementation(request):
    """Run every test on both implementations."""
    reason = extension.missing() if request.param == "cpp" else None
    if reason is not None:
        pytest.skip(reason)
    with use_implementation(masked_topk=request.param):
        yield


def tables(n_users, n_items, d, seed=0):
    """Small integers: scores are exact, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-2, 3, (n, d), generator=generator).float() for n in (n_users, n_items)]


def random_graph(n_users, n_items, density, seed=1):
    mask = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(seed)) < density
    row, col = mask.nonzero().T
    return Graph.from_edges(row, col, shape=(n_users, n_items))


def by_sorting(user, item, seen, k):
    scores, indices = [], []
    dense = seen.to_dense() if seen is not None else torch.zeros(len(user), len(item))
    for u in range(len(user)):
        score = [float(user[u] @ row) for row in item]
        ranked = sorted((i for i in range(len(item)) if not dense[u, i]), key=lambda i, s=score: (-s[i], i))[:k]
        missing = k - len(ranked)
        scores.append([score[i] for i in ranked] + [-math.inf] * missing)
        indices.append(ranked + [-1] * missing)
    return torch.tensor(scores).view(-1, k), torch.tensor(indices, dtype=torch.int64).view(-1, k)


@pytest.mark.parametrize(("n_users", "n_items"), [(1, 1), (5, 7), (23, 40), (3, 200)])
@pytest.mark.parametrize("density", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_equals_a_sort(n_users, n_items, density, k):
    user, item = tables(n_users, n_items, 3)
    seen = random_graph(n_users, n_items, density)
    scores, indices = masked_topk(user, item, seen, k)
    expected_scores, expected_indices = by_sorting(user, item, seen, k)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(scores, expected_scores)
    assert indices.dtype == torch.int64


@pytest.mark.parametrize(("n_users", "n_items"), [(49, 513), (97, 1100)])
def test_beyond_one_tile_of_users_and_one_block_of_items(n_users, n_items):
    """The compiled kernel takes 48 users and at most 512 items at a time."""
    user, item = tables(n_users, n_items, 5)
    seen = random_graph(n_users, n_items, 0.5)
    score = (user @ item.T).masked_fill(seen.to_dense() != 0, -math.inf)
    expected_scores, expected_indices = score.sort(dim=1, descending=True, stable=True)
    scores, indices = masked_topk(user, item, seen, 30)
    assert torch.equal(indices, expected_indices[:, :30])
    assert torch.equal(scores, expected_scores[:, :30])


def test_nothing_seen():
    user, item = tables(9, 30, 2)
    for found, expected in zip(masked_topk(user, item, None, 4), by_sorting(user, item, None, 4), strict=True):
        assert torch.equal(found, expected)


def test_all_scores_equal():
    _, indices = masked_topk(torch.zeros(3, 2), torch.ones(500, 2), random_graph(3, 500, 0.0), 10)
    assert torch.equal(indices, torch.arange(10).expand(3, 10))


def test_blocks_change_nothing(monkeypatch):
    user, item = tables(31, 20, 3)
    seen = random_graph(31, 20, 0.4)
    whole = masked_topk(user, item, seen, 6, implementation="reference")
    for entries in (1, 60, 250):
        monkeypatch.setattr(reference, "BLOCK_ENTRIES", entries)
        parts = masked_topk(user, item, seen, 6, implementation="reference")
        assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


@pytest.mark.parametrize(("n_users", "n_items"), [(0, 4), (4, 0), (0, 0)])
def test_no_users_or_no_items(n_users, n_items):
    scores, indices = masked_topk(torch.zeros(n_users, 2), torch.zeros(n_items, 2), None, 3)
    assert scores.shape == indices.shape == (n_users, 3)
    assert bool((scores == -math.inf).all())
    assert bool((indices == -1).all())


def test_stored_zeros_count_as_seen():
    seen = Graph.from_edges([0], [0], [0.0], shape=(1, 2))
    assert masked_topk(torch.ones(1, 1), torch.ones(2, 1), seen, 2)[1].tolist() == [[1, -1]]


def test_autocast_changes_nothing():
    user, item = (table + 0.1 for table in tables(8, 300, 16))
    expected = masked_topk(user, item, None, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, masked_topk(user, item, None, 10), expected))


def test_the_meta_device():
    user, item = torch.empty(3, 2, device="meta"), torch.empty(5, 2, device="meta")
    scores, indices = masked_topk(user, item, None, 4, implementation="reference")
    assert scores.device.type == indices.device.type == "meta"
    assert scores.shape == indices.shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_of_scores_and_no_gradient(dtype):
    user, item = (table.to(dtype).requires_grad_() for table in tables(3, 4, 2))
    scores, _ = masked_topk(user, item, None, 2, implementation="reference")
    assert scores.dtype == dtype
    assert not scores.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"user": torch.zeros(3)}, ValueError, "user: .* expected two dimensions"),
        ({"item": torch.zeros(4, 3)}, ValueError, r"item: found shape \(4, 3\), expected \(4, 2\)"),
        ({"item": torch.zeros(4, 2).double()}, TypeError, "item: found dtype torch.float64"),
        ({"user": torch.tensor([[0, 0], [math.nan, 0]])}, ValueError, "user: found NaN or infinity in row 1"),
        ({"item": torch.full((4, 2), math.inf)}, ValueError, "item: found NaN or infinity in row 0"),
        ({"seen": torch.zeros(2, 4)}, TypeError, "seen: found Tensor, expected a crane_kernels Graph"),
        ({"seen": Graph.from_edges([0], [0], shape=(4, 2))}, ValueError, r"seen: .* expected \(2, 4\)"),
        ({"seen": Graph.from_edges([0], [0], shape=(2, 4)).to("meta")}, ValueError, "seen: found on device meta"),
        ({"k": 0}, ValueError, "k: found 0"),
        ({"k": "5"}, TypeError, "k: found '5'"),
        ({"k": 2**62}, ValueError, rf"^k: found {2**62}, expected less than 2\^48 results for the 2 rows of user$"),
        ({"k": 2**70}, ValueError, rf"^k: found {2**70}, expected at most 2\^63 - 1$"),
    ],
)
def test_refusals(change, error, text):
    arguments = {"user": torch.zeros(2, 2), "item": torch.zeros(4, 2), "seen": None, "k": 2}
    with pytest.raises(error, match=text):
        masked_topk(**{**arguments, **change})


@pytest.mark.parametrize(
    ("rowptr", "found"),
    [([0, 3, 1, 4], "from 0 to 4"), ([1, 2, 3, 4], "from 1 to 4"), ([0, 2, 3, 5], "from 0 to 5"), ([0, 0, 0, 0], "0")],
)
@pytest.mark.usefixtures("compiled")
def test_operator_refuses_row_pointers_that_do_not_fit_the_columns(rowptr, found):
    seen = torch.tensor(rowptr), torch.arange(4, dtype=torch.int32)
    text = f"seen_rowptr: found it .*{found}, expected it to ascend from 0 to 4, the length of seen_col$"
    with pytest.raises(RuntimeError, match=text):
        torch.ops.crane_kernels.masked_topk(torch.zeros(3, 2), torch.zeros(9, 2), *seen, 2)
    with pytest.raises(RuntimeError, match="seen_rowptr: expected one entry more than users"):
        torch.ops.crane_kernels.masked_topk(torch.zeros(7, 2), torch.zeros(9, 2), *seen, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("compiled")
def test_operators_are_registered_as_torch_wants(masked, dtype):
    half = dtype not in extension.DTYPES  # which the compiled kernel does not take
    operator = torch.ops.crane_kernels.masked_topk_reference if half else torch.ops.crane_kernels.masked_topk
    seen = random_graph(9, 20, 0.3)
    arrays = (seen.rowptr, seen.col) if masked else (None, None)
    torch.library.opcheck(operator, (*(x.to(dtype) for x in tables(9, 20, 4)), *arrays, 3))


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_graph_breaks(masked):
    user, item = tables(9, 20, 4)
    seen = random_graph(9, 20, 0.3) if masked else None
    compiled = torch.compile(lambda u, i: masked_topk(u, i, seen, 3), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(user, item), masked_topk(user, item, seen, 3)))
    user[2, 1] = math.nan
    with pytest.raises(RuntimeError, match="user: found NaN or infinity"):
        compiled(user, item)
