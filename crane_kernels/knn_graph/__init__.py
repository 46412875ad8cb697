"""Nearest neighbours by cosine, as a graph."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch, extension
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.knn_graph import cpp, reference

dispatch.register(
    "knn_graph",
    Implementation("cpp", cpp.knn_graph, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.knn_graph),
)


def knn_graph(features: Tensor, k: int, *, implementation: str | None = None) -> Graph:
    """Connect every row to the k rows of the highest cosine, itself included, with equal weights that sum to one.

    Ties go to the lowest index, without exception: where more than k rows point in exactly the same direction, those
    of lowest index are everybody's neighbours, and a row among them need not be its own. An all-zero row has no
    direction: it has only itself, and is no other row's neighbour. Where fewer than k rows can be neighbours, all are.
    Exact, in memory of I * d int32 and some 300 MB beyond ``features``.

    Args:
        features: (I, d), floating point, finite.
        k: number of neighbours, at least 1; may exceed I.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        Graph (I, I) on the device of ``features``: row i has its neighbours as columns, each with the float32 value
        1 / (number of neighbours of i).

    Raises:
        TypeError: ``features`` is no dense floating-point tensor, or ``k`` is no int.
        ValueError: ``features`` is no matrix, has no columns, or holds NaN or infinity, or ``k`` is less than 1.
        RuntimeError: the requested implementation cannot serve the call.
    """
    if checks.matrix("features", features).shape[1] == 0:
        raise ValueError(f"features: found shape {tuple(features.shape)}, expected at least one column")
    checks.finite_rows("features", features)
    k = checks.integer("k", k, 1)
    result: Graph = dispatch.call("knn_graph", implementation, features, k)
    return result
