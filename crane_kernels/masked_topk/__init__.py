"""The best items of each user that the user has not seen."""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels import checks, dispatch, extension, triton_support
from crane_kernels.dispatch import Implementation
from crane_kernels.graph import Graph
from crane_kernels.masked_topk import cpp, reference

dispatch.register(
    "masked_topk",
    triton_support.implementation("crane_kernels.masked_topk.triton", "masked_topk"),
    Implementation("cpp", cpp.masked_topk, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.masked_topk),
)


def masked_topk(
    user: Tensor, item: Tensor, seen: Graph | None, k: int, *, implementation: str | None = None
) -> tuple[Tensor, Tensor]:
    """The k items of the highest score <user, item> for each user, in descending order, ties by lowest item index.

    Scores are compared as they come out in the dtype of ``user``, under autocast too; one that overflows to -inf is as
    one left out. Not differentiable: the results have no gradient.

    Args:
        user: (U, d), floating point, finite.
        item: (I, d), dtype and device of ``user``, finite.
        seen: users x items whose stored entries (of any value) are left out, or None to leave out nothing.
        k: number of items wanted, at least 1; may exceed I.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        scores (U, k) in the dtype of ``user`` and indices (U, k) int64. Where a user has fewer than k unseen items,
        the rest of the row is (-inf, -1).

    Raises:
        TypeError: a wrong dtype, or ``seen`` is no Graph, or ``k`` is no int.
        ValueError: a wrong shape or device, NaN or infinity in ``user`` or ``item``, or ``k`` less than 1 or too large
            for any memory.
        RuntimeError: the requested implementation cannot serve the call; or NaN or infinity, under torch.compile.
    """
    n_users, d = checks.matrix("user", user).shape
    n_items = checks.matrix("item", item).shape[0]
    checks.beside("item", item, (n_items, d), user, "user")
    k = checks.integer("k", k, 1)
    if not torch.compiler.is_compiling() and n_users * k >= checks.LARGEST:
        raise ValueError(f"k: found {k}, expected less than 2^48 results for the {n_users} rows of user")
    if seen is not None:
        checks.instance("seen", seen, Graph)
        if seen.shape != (n_users, n_items):
            raise ValueError(f"seen: found shape {seen.shape}, expected {(n_users, n_items)}, users x items")
        checks.same_device("seen", seen.value, user.device, "user")
    checks.finite_rows("user", user)
    checks.finite_rows("item", item)
    with triton_support.without_autocast(user):
        result: tuple[Tensor, Tensor] = dispatch.call("masked_topk", implementation, user, item, seen, k)
    return result
