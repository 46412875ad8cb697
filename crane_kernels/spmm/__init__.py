"""Sparse times dense: y = A x."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch, extension
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.spmm import cpp, cuda, reference

dispatch.register(
    "spmm",
    Implementation("cuda", cuda.spmm, missing=extension.cuda_missing, refuses=cuda.refuses),
    Implementation("cpp", cpp.spmm, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.spmm),
)


def spmm(graph: Graph, x: Tensor, *, implementation: str | None = None) -> Tensor:
    """Multiply the sparse matrix A of ``graph`` by the dense ``x``: y[i] = sum over edges (i, j) of A[i, j] x[j].

    Differentiable in ``x``; nothing is saved for backward but the graph, whose transpose it multiplies by.

    Args:
        graph: A, shape (n_rows, n_cols). Its values are used in the dtype of ``x``.
        x: (n_cols, d), floating point, on the graph's device; any strides.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        y: (n_rows, d), dtype of ``x``; rows without edges are zero.

    Raises:
        TypeError: ``graph`` is no Graph, or ``x`` no dense floating-point tensor.
        ValueError: ``x`` has the wrong shape or lives on another device.
        RuntimeError: the requested implementation cannot serve the call.
    """
    checks.instance("graph", graph, Graph)
    checks.matrix("x", x)
    checks.rows("x", x, graph.n_cols, "one for each column of the graph")
    checks.same_device("x", x, graph.device, "the graph")
    result: Tensor = dispatch.call("spmm", implementation, graph, x)
    return result
