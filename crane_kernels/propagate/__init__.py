"""Graph propagation with layer averaging, as in LightGCN (He et al. 2020, equation 8 with equal weights)."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch, extension
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.propagate import cpp, cuda, reference
from crane_kernels.spmm import check_operands
from crane_kernels.spmm.fold import fold, unfold

dispatch.register(
    "propagate",
    Implementation("cuda", cuda.propagate, missing=extension.cuda_missing, refuses=cuda.refuses),
    Implementation("cpp", cpp.propagate, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.propagate),
)


def propagate(
    graph: Graph, x: Tensor, layers: int, rows: Tensor | None = None, *, implementation: str | None = None
) -> Tensor:
    """Mean of x, A x, A^2 x, ..., A^layers x.

    Differentiable any number of times in ``x``; no activations are saved for backward, which is the same computation
    with A transposed. In the graph's values too, where they require gradients.

    With ``rows``, each layer is computed only where the wanted rows reach in the layers after it, forward and backward:
    a training step costs what its batch needs, and the gradient's zeros. On the CPU a layer that is needed at rows with
    most of the edges, by a sample, is computed at all rows, which costs less; the result has the bits of that for all
    rows.

    Args:
        graph: A, shape (n, n). Its values are used in the dtype of ``x``.
        x: (..., n, d), floating point, on the graph's device; any strides.
        layers: how many times A is applied, at least 0.
        rows: (r,) int64 or int32, in any order, repetitions allowed: compute only these rows; None: all.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        (..., n, d) or (..., r, d), dtype of ``x``.

    Raises:
        TypeError: ``graph`` is no Graph, ``x`` no dense floating-point tensor, ``layers`` no int, or ``rows`` no
            integer tensor.
        ValueError: the graph is not square, ``layers`` is negative, ``x`` or ``rows`` has the wrong shape or device, or
            ``rows`` holds an index out of range.
        RuntimeError: the requested implementation cannot serve the call.
    """
    checks.instance("graph", graph, Graph)
    layers = checks.integer("layers", layers, 0)
    if graph.n_rows != graph.n_cols:
        raise ValueError(f"graph: found shape {graph.shape}, expected a square graph")
    check_operands(graph, x, rows)
    result: Tensor = dispatch.call("propagate", implementation, graph, fold(x), layers, rows)
    return unfold(result, x)
