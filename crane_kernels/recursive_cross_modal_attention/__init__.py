"""Recursive cross-modal attention (RCA): modalities refine each other through their cross-correlation."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

from crane_kernels import checks, dispatch, extension, triton_support
from crane_kernels.dispatch import Implementation
from crane_kernels.recursive_cross_modal_attention import cpp, reference
from crane_kernels.triton_support import autocast, without_autocast

Memory = Literal["fast", "low"]

dispatch.register(
    "recursive_cross_modal_attention",
    triton_support.implementation(
        "crane_kernels.recursive_cross_modal_attention.triton", "recursive_cross_modal_attention"
    ),
    Implementation("cpp", cpp.recursive_cross_modal_attention, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.recursive_cross_modal_attention),
)


def recursive_cross_modal_attention(
    x: Tensor,
    w_joint: Tensor,
    b_joint: Tensor,
    w_attend: Tensor,
    w_out: Tensor,
    recursions: int,
    scale: float | None = None,
    rows: Tensor | None = None,
    *,
    memory: Memory = "fast",
    implementation: str | None = None,
) -> Tensor:
    """Refine M modalities of N nodes ``recursions`` times with shared weights (CRANE, arXiv 2601.11151).

    With X_m = x[:, m], one recursion is, for all modalities from the same features::

        E   = [X_1 | ... | X_M] W_E + b_E        joint latent features, (N, d)
        C_m = tanh(X_m^T E * scale)              cross-correlation over all N rows, (d, d)
        X_m <- X_m + relu(X_m W_m C_m) V_m       residual refinement

    Differentiable in ``x`` and the four weights. Under autocast all are taken in its dtype, as
    ``torch.nn.functional.linear`` takes them (on the CPU by the reference, as its kernels have no half precision).

    Args:
        x: (N, M, d), floating point; N may be zero.
        w_joint: W_E, (M * d, d), rows by modality, then width.
        b_joint: b_E, (d,).
        w_attend: W_m, (M, d, d).
        w_out: V_m, (M, d, d).
        recursions: number of recursions, at least 0 (which returns ``x``, under autocast in its dtype).
        scale: factor within the tanh, above zero; None: 1 / sqrt(d * N), so that its effect does not change with N.
            To ``torch.export`` it is a constant: give it where N is dynamic.
        rows: (n,) int64 or int32 rows of the result that are wanted, in any order and number; None: all. The other rows
            still take part in the sums, but the last recursion computes nothing else of them.
        memory: what is kept from forward to backward, beside d x d matrices: "fast", the features before each recursion
            and whatever else the implementation likes; "low", ``x`` alone, from which backward computes the rest again.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        (N, M, d), or (n, M, d) with ``rows``; dtype of ``x``, or autocast's where that is no float64.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or not of the dtype of ``x``, or no number.
        ValueError: a shape, a device, ``recursions``, ``scale``, ``memory`` or a row (looked for on the CPU alone) is
            out of order.
        RuntimeError: the requested implementation cannot serve the call.
    """
    n, modalities, d = checks.tensor("x", x, 3).shape
    if modalities < 1 or d < 1:
        raise ValueError(f"x: found shape {tuple(x.shape)}, expected at least one modality of width at least one")
    x, w_joint, b_joint, w_attend, w_out = autocast(x, w_joint, b_joint, w_attend, w_out)
    checks.beside("w_joint", w_joint, (modalities * d, d), x, "x")
    checks.beside("b_joint", b_joint, (d,), x, "x")
    checks.beside("w_attend", w_attend, (modalities, d, d), x, "x")
    checks.beside("w_out", w_out, (modalities, d, d), x, "x")
    recursions = checks.integer("recursions", recursions, 0)
    factor = 1 / math.sqrt(d * max(n, 1)) if scale is None else checks.positive("scale", scale)
    if memory not in get_args(Memory):
        raise ValueError(f"memory: found {memory!r}, expected 'fast' or 'low'")
    if rows is not None:
        checks.indices("rows", rows, n, "the rows of x")
        checks.same_device("rows", rows, x.device, "x")
    with without_autocast(x):
        result: Tensor = dispatch.call(
            "recursive_cross_modal_attention",
            implementation,
            x,
            w_joint,
            b_joint,
            w_attend,
            w_out,
            recursions,
            factor,
            rows,
            memory,
        )
    return result
