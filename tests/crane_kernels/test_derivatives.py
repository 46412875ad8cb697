"""How calls of compiled operators find their backward: eagerly by a function of this package, else through torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crane_kernels import Graph, propagate, spmm

pytestmark = pytest.mark.usefixtures("compiled")
GRAPH = Graph.from_edges([0, 0, 1, 2], [1, 2, 0, 2], shape=(3, 3))


def features() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("product", [spmm, lambda graph, x: propagate(graph, x, 2)])
def test_eager_calls_do_not_take_the_dispatcher_s_way(product) -> None:
    node = product(GRAPH, features()).grad_fn
    assert node is not None
    assert "Generated" not in node.name()


def test_a_trace_holds_the_operator() -> None:
    traced = torch.jit.trace(lambda x: spmm(GRAPH, x), (features(),), check_trace=False)
    assert "crane_kernels::spmm" in str(traced.graph)
    assert "PythonOp" not in str(traced.graph)
    x = features()
    torch.testing.assert_close(traced(x), spmm(GRAPH, x))


def test_results_of_subclasses_can_be_changed_in_place() -> None:
    class Tagged(Tensor):
        pass

    x = features()
    y = spmm(GRAPH, x.as_subclass(Tagged))
    y.mul_(2)
    y.sum().backward()
    expected = features()
    (2 * spmm(GRAPH, expected)).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


def test_nothing_is_recorded_where_nothing_requires_gradients() -> None:
    x = features()
    assert not spmm(GRAPH, x.detach()).requires_grad
    with torch.no_grad():
        assert not spmm(GRAPH, x).requires_grad
    with torch.inference_mode():
        assert spmm(GRAPH, x).is_inference()
