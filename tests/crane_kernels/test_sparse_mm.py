"""``sparse_mm`` against ``torch.sparse.mm``: results, gradients, errors, and the life of the converted graphs."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crane_kernels import sparse_mm, use_implementation
from crane_kernels.sparse_mm import cache

LAYOUTS = ("uncoalesced", "coalesced", "csr", "csc")


def sparse(layout: str, n: int = 30, m: int = 20, edges: int = 90, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random matrix; the uncoalesced one holds some places more than once."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randint(max(size, 1), (edges,), generator=generator) for size in (n, m)])
    value = torch.randn(edges, generator=generator, dtype=dtype)
    coo = torch.sparse_coo_tensor(indices, value, (n, m), check_invariants=False)
    layouts: dict[str, Callable[[], Tensor]] = {
        "uncoalesced": lambda: coo,
        "coalesced": coo.coalesce,
        "csr": coo.to_sparse_csr,
        "csc": coo.to_sparse_csc,
    }
    return layouts[layout]()


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is converted during the test, in order."""
    seen: list[Tensor] = []
    convert = cache.Graph.from_torch

    def from_torch(A: Tensor) -> cache.Graph:
        seen.append(A)
        return convert(A)

    monkeypatch.setattr(cache.Graph, "from_torch", from_torch)
    return seen


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(layout: str, dtype: torch.dtype) -> None:
    A = sparse(layout, dtype=dtype)
    x = torch.randn(20, 7, dtype=dtype, requires_grad=True)
    grad = torch.randn(30, 7, dtype=dtype)
    ours, theirs = sparse_mm(A, x), torch.sparse.mm(A, x)
    torch.testing.assert_close(ours, theirs)
    assert ours.layout == theirs.layout
    torch.testing.assert_close(torch.autograd.grad(ours, x, grad)[0], torch.autograd.grad(theirs, x, grad)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n", "m", "edges"), [(0, 3, 0), (3, 4, 0), (1, 1, 1), (4, 1, 3)])
def test_small_matrices(layout: str, n: int, m: int, edges: int) -> None:
    A = sparse(layout, n, m, edges)
    x = torch.randn(m, 5)
    torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))
    assert sparse_mm(A, x[:, :0]).shape == (n, 0)


def test_strided_dense_operand() -> None:
    A = sparse("csr")
    x = torch.randn(7, 40)[:, ::2].t()
    torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))


def test_gradient_of_values_is_torchs() -> None:
    value = torch.randn(3, requires_grad=True)
    x = torch.randn(4, 5, requires_grad=True)
    indices = torch.tensor([[0, 2, 2], [1, 3, 0]])
    grads = []
    for multiply in (sparse_mm, torch.sparse.mm):
        A = torch.sparse_coo_tensor(indices, value, (3, 4))
        grads.append(torch.autograd.grad(multiply(A, x).square().sum(), (value, x)))
    torch.testing.assert_close(grads[0], grads[1])


def test_values_that_require_gradients_are_cached_where_none_are_recorded(conversions: list[Tensor]) -> None:
    A = sparse("uncoalesced").requires_grad_()
    x = torch.randn(20, 3)
    with torch.no_grad():
        torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))
    assert len(conversions) == 1
    assert sparse_mm(A, x).requires_grad


def test_values_that_are_nan_stay_so() -> None:
    A = torch.sparse_coo_tensor([[0, 1], [1, 0]], [float("nan"), 1.0], (2, 2))
    torch.testing.assert_close(sparse_mm(A, torch.ones(2, 3)), torch.sparse.mm(A, torch.ones(2, 3)), equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "x",
    [torch.randn(20), torch.randn(19, 2), torch.randn(20, 2).double(), torch.randn(20, 2, 2)],
    ids=["vector", "rows", "dtype", "3-D"],
)
def test_refuses_what_torch_refuses_in_its_words(layout: str, x: Tensor) -> None:
    A = sparse(layout)
    with pytest.raises((RuntimeError, IndexError)) as theirs:
        torch.sparse.mm(A, x)
    with pytest.raises(type(theirs.value)) as ours:
        sparse_mm(A, x)
    assert str(ours.value) == str(theirs.value)


def test_sparse_times_sparse_is_torchs() -> None:
    A = sparse("coalesced", 5, 5, 9)
    assert sparse_mm(A, A).is_sparse


@pytest.mark.parametrize("layout", LAYOUTS)
def test_converts_once(layout: str, conversions: list[Tensor]) -> None:
    A, x = sparse(layout), torch.randn(20, 3)
    for _ in range(3):
        sparse_mm(A, x)
        sparse_mm(A.detach(), x)  # another object, the same memory
        sparse_mm(A.to("cpu"), x)
    assert len(conversions) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_notices_changes_in_place(layout: str) -> None:
    A, x = sparse(layout), torch.randn(20, 3)
    changes: list[Callable[[], object]] = [
        lambda: A.mul_(2),
        lambda: (A._values() if A.layout == torch.sparse_coo else A.values()).zero_(),
        lambda: A.copy_(sparse(layout).mul_(3)),
    ]
    if layout == "uncoalesced":
        changes.append(lambda: A._indices().copy_(A._indices().flip(1)))
    for change in changes:
        sparse_mm(A, x)
        change()
        torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))


def test_shared_values_with_other_indices(conversions: list[Tensor]) -> None:
    value, x = torch.ones(2), torch.eye(3)
    kept = torch.sparse_coo_tensor([[0, 1], [1, 2]], value, (3, 3))
    first = torch.sparse_coo_tensor([[0, 1], [2, 2]], value, (3, 3))
    for A in (kept, first, kept, first):
        torch.testing.assert_close(sparse_mm(A, x), A.to_dense())
    del A, first
    # New indices may get the address of the freed ones; they are another matrix all the same.
    second = torch.sparse_coo_tensor([[2, 1], [2, 2]], value, (3, 3))
    for A in (kept, second):
        torch.testing.assert_close(sparse_mm(A, x), A.to_dense())
    assert len(conversions) == 3


def test_a_matrix_and_its_transpose_share_memory_but_no_graph() -> None:
    A, x = sparse("csr", 6, 6, 12), torch.randn(6, 2)
    transposed = torch.sparse_csc_tensor(A.crow_indices(), A.col_indices(), A.values(), (6, 6))
    for matrix in (A, transposed, A):
        torch.testing.assert_close(sparse_mm(matrix, x), matrix.to_dense() @ x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_graph_goes_with_the_tensor(layout: str) -> None:
    A = sparse(layout)
    sparse_mm(A, torch.randn(20, 3, requires_grad=True))
    graph = weakref.ref(cache.graph_of(A))
    alias = A.detach()
    del A
    gc.collect()
    assert graph() is cache.graph_of(alias)
    del alias
    gc.collect()
    assert graph() is None


def test_rising_edges_do_not_keep_their_own_memory() -> None:
    value = torch.ones(2)
    storage = weakref.ref(value.untyped_storage())
    A = torch.sparse_coo_tensor([[0, 1], [1, 0]], value, (2, 2))
    sparse_mm(A, torch.eye(2))
    del A, value
    gc.collect()
    assert storage() is None


def test_tensors_carry_nothing_of_it() -> None:
    A = sparse("uncoalesced")
    sparse_mm(A, torch.randn(20, 3))
    assert not vars(A)
    assert not vars(copy.deepcopy(A))
    torch.save(A, io.BytesIO())


def test_implementation_is_spmms() -> None:
    A, x = sparse("csr"), torch.randn(20, 3)
    torch.testing.assert_close(sparse_mm(A, x, implementation="reference"), torch.sparse.mm(A, x))
    with use_implementation(spmm="reference"):
        torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))
    with pytest.raises(RuntimeError, match="implementation 'cpp' was requested but A requires gradients"):
        sparse_mm(A.clone().requires_grad_(), x, implementation="cpp")
    with pytest.raises(RuntimeError, match="requested but x has 19 rows and A has 20 columns"):
        sparse_mm(A, x[1:], implementation="reference")


def test_second_order() -> None:
    A = sparse("csr", 5, 4, 9, torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: sparse_mm(A, x).tanh(), (x,))


def test_within_torch_compile() -> None:
    """torch.compile takes no sparse tensors: it breaks the graph there, for ``torch.sparse.mm`` too."""
    A, x = sparse("csr"), torch.randn(20, 3)
    compiled = torch.compile(lambda x: sparse_mm(A, 2 * x) + 1, backend="aot_eager")
    torch.testing.assert_close(compiled(x), 2 * torch.sparse.mm(A, x) + 1)


def test_gradients_of_csc_are_refused_before_the_backward() -> None:
    A, x = sparse("csc").requires_grad_(), torch.randn(20, 3)
    with pytest.raises(RuntimeError, match="A is in CSC layout and requires gradients"):
        sparse_mm(A, x)
    with torch.no_grad():
        torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_made_in_inference_mode(layout: str, conversions: list[Tensor]) -> None:
    x = torch.randn(20, 3)
    with torch.inference_mode():
        made = sparse(layout)
        torch.testing.assert_close(sparse_mm(made, x), torch.sparse.mm(made, x))
        made.mul_(2)
        torch.testing.assert_close(sparse_mm(made, x), torch.sparse.mm(made, x))
    assert not conversions
    with pytest.raises(RuntimeError, match="requested but A was made in inference mode"):
        sparse_mm(made, x, implementation="reference")
    A = sparse(layout)
    with torch.inference_mode():
        torch.testing.assert_close(sparse_mm(A, x), torch.sparse.mm(A, x))
    assert len(conversions) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_converted_in_inference_mode_for_training_too(
    layout: str, dtype: torch.dtype, conversions: list[Tensor]
) -> None:
    """A validation step may come before the first training step."""
    A, x = sparse(layout, dtype=dtype), torch.randn(20, 3, dtype=dtype, requires_grad=True)
    with torch.inference_mode():
        sparse_mm(A, x)
    ours, theirs = sparse_mm(A, x), torch.sparse.mm(A, x)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, expected)
    assert len(conversions) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_as_torchs(dtype: torch.dtype, conversions: list[Tensor]) -> None:
    A = sparse("uncoalesced", dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(20, 7).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = sparse_mm(A, x), torch.sparse.mm(A, x)
    assert len(conversions) == 1
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    (found,) = torch.autograd.grad(ours.float().sum(), x)  # torch's own backward fails on the CPU: its dtypes differ
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), A.to_dense().double().T @ torch.ones(30, 7).double(), rtol=2e-2, atol=2e-2
    )


def test_transforms_of_functions_are_torchs() -> None:
    A, x = sparse("uncoalesced"), torch.randn(20, 3)
    ours, theirs = (
        torch.func.grad(lambda x, f=multiply: f(A, x).sin().sum())(x) for multiply in (sparse_mm, torch.sparse.mm)
    )
    torch.testing.assert_close(ours, theirs)


def test_the_meta_device_is_torchs() -> None:
    A, x = sparse("csr").to("meta"), torch.ones(20, 3, device="meta")
    with pytest.raises(RuntimeError, match="requested but the meta device holds no numbers"):
        sparse_mm(A, x, implementation="reference")
