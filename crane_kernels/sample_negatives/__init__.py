"""Items that users have not interacted with, at random."""

from __future__ import annotations

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
    _refuse_full_rows(graph, users)
    result: Tensor = dispatch.call("sample_negatives", implementation, graph, users, generator)
    return result


def _refuse_full_rows(graph: Graph, users: Tensor) -> None:
    wanted = users.to(graph.device).long()
    full = graph.rowptr[wanted + 1] - graph.rowptr[wanted] >= graph.n_cols
    if bool(full.any()):
        user = int(wanted[full][0])
        raise ValueError(
            f"users: found user {user}, who has interacted with every one of the {graph.n_cols} items,"
            " expected users with at least one item left"
        )
