"""Contrastive loss between two views of the same rows."""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels import checks, dispatch, extension, triton_support
from crane_kernels.dispatch import Implementation
from crane_kernels.info_nce import cpp, reference

dispatch.register(
    "info_nce",
    triton_support.implementation("crane_kernels.info_nce.triton", "info_nce"),
    Implementation("cpp", cpp.info_nce, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.info_nce),
)


def info_nce(
    a: Tensor,
    b: Tensor,
    temperature: float,
    *,
    ids: Tensor | None = None,
    symmetric: bool = False,
    implementation: str | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) with in-batch negatives, from ``a`` to ``b``.

    Rows are scaled to length one; the loss is the mean over rows i of the cross-entropy of
    softmax_j(<a_i, b_j> / temperature) with j = i as the positive. A zero row has no direction: its cosine with
    everything is 0 and its gradient is 0. Rows of ``b`` that are the same row twice count as each other's negatives,
    unless their ``ids`` say that they stand for the same thing. One direction is what graph recommenders train with (Wu
    et al. 2021, Yu et al. 2022); ``symmetric`` is the loss of both directions (Radford et al. 2021). Differentiable in
    ``a`` and ``b``. Stable for temperatures down to 0.01 and below. Computed in the dtype of ``a`` under autocast too.

    Args:
        a: (n, d), floating point, n at least 1.
        b: (n, d), dtype and device of ``a``; row i is the positive of row i of ``a``.
        temperature: finite, above zero.
        ids: (n,) int64 or int32 labels of the rows, or None: in row i, columns j != i of the same label are left out.
        symmetric: the mean of the losses from ``a`` to ``b`` and from ``b`` to ``a``.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        Scalar, dtype of ``a``.

    Raises:
        TypeError: a wrong dtype, ``temperature`` is no number, or ``symmetric`` no bool.
        ValueError: a wrong shape or device, no rows, or ``temperature`` not finite and above zero, or so small
            that logits overflow in the dtype of ``a``.
        RuntimeError: the requested implementation cannot serve the call.
    """
    n, d = checks.matrix("a", a).shape
    checks.beside("b", b, (n, d), a, "a")
    if n == 0:
        raise ValueError("a: found no rows, expected at least one")
    temperature = checks.positive("temperature", temperature)
    if 2 / temperature > torch.finfo(a.dtype).max:  # of a positive and a negative in opposite directions
        least = 2 / torch.finfo(a.dtype).max
        raise ValueError(
            f"temperature: found {temperature}, expected at least {least:.2g}, below which {a.dtype} overflows"
        )
    if ids is not None:
        checks.labels("ids", ids, n, a.device, "a")
    checks.instance("symmetric", symmetric, bool)
    with triton_support.without_autocast(a):
        result: Tensor = dispatch.call("info_nce", implementation, a, b, temperature, ids, symmetric)
    return result
