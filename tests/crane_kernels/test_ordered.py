"""Sums over repeated indices: what they are, and that their order is fixed."""

from __future__ import annotations

from typing import Any

import torch
from graphs import random_graph
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from crane_kernels import Graph
from crane_kernels.ordered import sum_at, take
from crane_kernels.spmm import reference


def test_sums_and_rows() -> None:
    place = torch.tensor([2, 0, 2], dtype=torch.int32)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    assert sum_at(place, values, 4).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    rows = take(values, place)
    assert rows.tolist() == [[5, 6], [1, 2], [5, 6]]
    (grad,) = torch.autograd.grad(rows.sum(), values)
    assert grad.tolist() == [[1, 1], [0, 0], [2, 2]]
    assert sum_at(place[:0], values[:0], 2).tolist() == [[0, 0], [0, 0]]


class _Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_sums_on_cuda_are_by_the_operator_that_sorts() -> None:
    """Told by its name, on tensors that are described only."""
    like = random_graph(5, 4, 9)
    with FakeTensorMode(), torch.no_grad(), _Operators() as run:
        arrays = (like.rowptr, like.col, like.value)
        rowptr, col, value = (torch.empty(array.shape, dtype=array.dtype, device="cuda") for array in arrays)
        sums = Graph._trusted(rowptr, col, value, like.shape)._column_sums()
    assert sums.shape == (4,)
    assert "index_put" in run.names
    assert "index_add" not in run.names


def test_gradients_of_the_reference_repeat_with_many_threads() -> None:
    graph = random_graph(20, 5, 4000).to(torch.float32)
    x = torch.randn(5, 64, requires_grad=True)
    rows, weight = torch.randint(20, (5000,)), torch.randn(5000, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        grads = [torch.autograd.grad((reference.spmm(graph, x, rows) * weight).sum(), x)[0] for _ in range(8)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grad, grads[0]) for grad in grads)
