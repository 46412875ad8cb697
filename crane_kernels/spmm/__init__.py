"""Sparse times dense: y = A x."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch, extension
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.spmm import cpp, cuda, reference
from crane_kernels.spmm.fold import fold, unfold
from crane_kernels.spmm.reference import Reduce

dispatch.register(
    "spmm",
    Implementation("cuda", cuda.spmm, missing=extension.cuda_missing, refuses=cuda.refuses),
    Implementation("cpp", cpp.spmm, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.spmm),
)


def spmm(
    graph: Graph, x: Tensor, rows: Tensor | None = None, reduce: Reduce = "sum", *, implementation: str | None = None
) -> Tensor:
    """Multiply the sparse matrix A of ``graph`` by the dense ``x``: y[i] = sum over edges (i, j) of A[i, j] x[j].

    Differentiable any number of times in ``x`` and in the graph's values, where they require gradients. Where they do
    not, nothing is saved for backward but the graph, whose transpose it multiplies by.

    Args:
        graph: A, shape (n_rows, n_cols). Its values are used in the dtype of ``x``.
        x: (..., n_cols, d), floating point, on the graph's device; any strides. Half precision accumulates in float32.
        rows: (r,) int64 or int32, in any order, repetitions allowed: compute only these rows of y; None: all.
        reduce: ``"mean"``: divided by the number of the row's edges; ``"max"``: the largest A[i, j] x[j], element by
            element, whose gradient goes to the first of equal ones.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        y: (..., n_rows, d) or (..., r, d), dtype of ``x``; rows without edges are zero.

    Raises:
        TypeError: ``graph`` is no Graph, ``x`` no dense floating-point tensor, or ``rows`` no integer tensor.
        ValueError: ``x`` or ``rows`` has the wrong shape or lives on another device, ``rows`` holds an index out of
            range, or an unknown ``reduce``.
        RuntimeError: the requested implementation cannot serve the call.
    """
    checks.instance("graph", graph, Graph)
    if reduce not in ("sum", "mean", "max"):
        raise ValueError(f"reduce: found {reduce!r}, expected 'sum', 'mean' or 'max'")
    check_operands(graph, x, rows)
    result: Tensor = dispatch.call("spmm", implementation, graph, fold(x), rows, reduce)
    return unfold(result, x)


def check_operands(graph: Graph, x: Tensor, rows: Tensor | None) -> None:
    """Check the dense operand and the wanted rows of a product with ``graph``."""
    checks.matrices("x", x)
    if x.shape[-2] != graph.n_cols:
        raise ValueError(f"x: found {x.shape[-2]} rows, expected {graph.n_cols}, one for each column of the graph")
    checks.same_device("x", x, graph.device, "the graph")
    if rows is not None:
        checks.indices("rows", rows, graph.n_rows, "the rows of graph")
        checks.same_device("rows", rows, graph.device, "the graph")
