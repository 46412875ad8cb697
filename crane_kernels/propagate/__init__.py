"""Graph propagation with layer averaging, as in LightGCN (He et al. 2020, equation 8 with equal weights)."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch, extension
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.propagate import cpp, cuda, reference

dispatch.register(
    "propagate",
    Implementation("cuda", cuda.propagate, missing=extension.cuda_missing, refuses=cuda.refuses),
    Implementation("cpp", cpp.propagate, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.propagate),
)


def propagate(graph: Graph, x: Tensor, layers: int, *, implementation: str | None = None) -> Tensor:
    """Mean of x, A x, A^2 x, ..., A^layers x.

    Differentiable in ``x``; no activations are saved for backward, which is the same computation with A transposed.

    Args:
        graph: A, shape (n, n). Its values are used in the dtype of ``x``.
        x: (n, d), floating point, on the graph's device; any strides.
        layers: how many times A is applied, at least 0.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        (n, d), dtype of ``x``.

    Raises:
        TypeError: ``graph`` is no Graph, or ``x`` no dense floating-point tensor, or ``layers`` is no int.
        ValueError: the graph is not square, ``layers`` is negative, or ``x`` has the wrong shape or device.
        RuntimeError: the requested implementation cannot serve the call.
    """
    checks.instance("graph", graph, Graph)
    checks.matrix("x", x)
    checks.integer("layers", layers, 0)
    if graph.n_rows != graph.n_cols:
        raise ValueError(f"graph: found shape {graph.shape}, expected a square graph")
    checks.rows("x", x, graph.n_cols, "one for each node of the graph")
    checks.same_device("x", x, graph.device, "the graph")
    result: Tensor = dispatch.call("propagate", implementation, graph, x, layers)
    return result
