"""Bayesian personalised ranking loss."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch, triton_support
from crane_kernels.bpr_loss import reference
from crane_kernels.dispatch import Implementation

dispatch.register(
    "bpr_loss",
    triton_support.implementation("crane_kernels.bpr_loss.triton", "bpr_loss"),
    Implementation("reference", reference.bpr_loss),
)


def bpr_loss(
    user: Tensor,
    item: Tensor,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    implementation: str | None = None,
) -> Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009): mean of -log sigmoid(<u, p> - <u, n>) over B triples.

    Differentiable in ``user`` and ``item``; the gradient of rows that occur more than once is the same bits every run
    on the CPU and by the Triton kernels, which compute in the dtype of ``user`` under autocast too.

    Args:
        user: (U, d), floating point.
        item: (I, d), dtype and device of ``user``.
        users: (B,) int64 or int32 rows of ``user``.
        positives: (B,) rows of ``item`` that are to score higher.
        negatives: (B,) rows of ``item`` that are to score lower.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        Scalar, dtype of ``user``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, no triples, or (looked for on the CPU alone) an index out of range.
        RuntimeError: the requested implementation cannot serve the call.
    """
    n_users, d = checks.matrix("user", user).shape
    n_items = checks.matrix("item", item).shape[0]
    checks.beside("item", item, (n_items, d), user, "user")
    batch = checks.indices("users", users, n_users, "the rows of user").numel()
    if batch == 0:
        raise ValueError("users: found no triples, expected at least one")
    for name, index in (("positives", positives), ("negatives", negatives)):
        checks.indices(name, index, n_items, "the rows of item")
        checks.rows(name, index, batch, "one for each of users")
    for name, index in (("users", users), ("positives", positives), ("negatives", negatives)):
        checks.same_device(name, index, user.device, "user")
    result: Tensor = dispatch.call("bpr_loss", implementation, user, item, users, positives, negatives)
    return result
