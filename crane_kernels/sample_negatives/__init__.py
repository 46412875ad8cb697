"""Items that users have not interacted with, at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from crane_kernels import checks, dispatch, extension
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.sample_negatives import cpp, reference

dispatch.register(
    "sample_negatives",
    Implementation("cpp", cpp.sample_negatives, missing=extension.missing),
    Implementation("reference", reference.sample_negatives),
)


def sample_negatives(
    graph: Graph, users: Tensor, generator: np.random.Generator, *, implementation: str | None = None
) -> Tensor:
    """Draw one item for each of ``users``, uniformly from those the user has no edge to.

    Args:
        graph: users x items; a stored entry of any value is an interaction.
        users: (B,) int64 or int32, with repetitions.
        generator: all randomness; the same state gives the same items.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        (B,) int64 items on the device of ``users``: never one the user has interacted with.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an index out of range, or a user who has interacted with every item.
        RuntimeError: the requested implementation cannot serve the call.
    """
    checks.instance("graph", graph, Graph)
    checks.indices("users", users, graph.n_rows, "the rows of graph")
    checks.instance("generator", generator, np.random.Generator)
    graph = graph.coalesce()
    rank = generator.integers(0, _items_left(graph, users))
    result: Tensor = dispatch.call("sample_negatives", implementation, graph, users, rank)
    return result


def _items_left(graph: Graph, users: Tensor) -> np.ndarray[Any, Any]:
    """How many items each user has no edge to: (B,), all above zero."""
    rowptr, rows = graph.rowptr.cpu().numpy(), users.cpu().numpy()
    left: np.ndarray[Any, Any] = graph.n_cols - (rowptr[rows + 1] - rowptr[rows])
    if left.min(initial=1) <= 0:
        raise ValueError(
            f"users: found user {rows[left.argmin()]}, who has interacted with every one of the {graph.n_cols} items,"
            " expected users with at least one item left"
        )
    return left
