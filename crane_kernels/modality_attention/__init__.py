"""Multi-head attention over the few modality tokens of each row, or across the rows of each modality."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch, extension, triton_support
from crane_kernels.dispatch import Implementation
from crane_kernels.modality_attention import cpp, reference
from crane_kernels.triton_support import autocast, without_autocast

AXES = ("modalities", "items")

dispatch.register(
    "modality_attention",
    triton_support.implementation("crane_kernels.modality_attention.triton", "modality_attention"),
    Implementation("cpp", cpp.modality_attention, missing=extension.missing, refuses=cpp.refuses),
    Implementation("reference", reference.modality_attention),
)


def modality_attention(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
    axis: str = "modalities",
    *,
    implementation: str | None = None,
) -> Tensor:
    """``torch.nn.MultiheadAttention`` over the M tokens of each of N rows, then the mean over the tokens.

    The weights are that module's own, by its own names. Along the axis ``"modalities"`` the tokens of a row attend to
    each other and rows are independent (``batch_first=True``). Along ``"items"`` the N rows attend to each other and
    modalities are independent (``batch_first=False``), in O(N) memory and O(N^2) time. The mean over the M tokens
    follows in both. Differentiable in ``tokens`` and the weights. Under autocast all are taken in its dtype, as
    ``torch.nn.functional.linear`` takes them.

    Args:
        tokens: (N, M, d), floating point; N may be zero.
        in_proj_weight: (3 * d, d): query, key and value projections.
        in_proj_bias: (3 * d,) or None.
        out_proj_weight: (d, d).
        out_proj_bias: (d,) or None.
        num_heads: number of heads, a divisor of d.
        axis: ``"modalities"`` or ``"items"``: what attends to each other.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        (N, d), dtype of ``tokens``, or autocast's where that is no float64.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or not of the dtype of ``tokens``.
        ValueError: a shape or a device is wrong, ``num_heads`` does not divide d, or ``axis`` is unknown.
        RuntimeError: the requested implementation cannot serve the call.
    """
    _, modalities, d = checks.tensor("tokens", tokens, 3).shape
    if modalities < 1 or d < 1:
        raise ValueError(
            f"tokens: found shape {tuple(tokens.shape)}, expected at least one token of width at least one"
        )
    tokens, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias = autocast(
        tokens, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias
    )
    checks.beside("in_proj_weight", in_proj_weight, (3 * d, d), tokens, "tokens")
    checks.beside("out_proj_weight", out_proj_weight, (d, d), tokens, "tokens")
    if in_proj_bias is not None:
        checks.beside("in_proj_bias", in_proj_bias, (3 * d,), tokens, "tokens")
    if out_proj_bias is not None:
        checks.beside("out_proj_bias", out_proj_bias, (d,), tokens, "tokens")
    num_heads = checks.integer("num_heads", num_heads, 1)
    if d % num_heads:
        raise ValueError(f"num_heads: found {num_heads}, expected a divisor of the width {d}")
    if axis not in AXES:
        raise ValueError(f"axis: found {axis!r}, expected one of {', '.join(AXES)}")
    with without_autocast(tokens):
        result: Tensor = dispatch.call(
            "modality_attention",
            implementation,
            tokens,
            in_proj_weight,
            in_proj_bias,
            out_proj_weight,
            out_proj_bias,
            num_heads,
            axis,
        )
    return result
