"""Multi-head attention over the few modality tokens of each row."""

from __future__ import annotations

from torch import Tensor

from crane_kernels import checks, dispatch
from crane_kernels.dispatch import Implementation
from crane_kernels.modality_attention import reference

dispatch.register("modality_attention", Implementation("reference", reference.modality_attention))


def modality_attention(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    num_heads: int,
    *,
    implementation: str | None = None,
) -> Tensor:
    """``torch.nn.MultiheadAttention(batch_first=True)`` over the M tokens of each of N rows, then their mean.

    The weights are that module's own, by its own names. Rows are independent of each other. Differentiable in
    ``tokens`` and the weights.

    Args:
        tokens: (N, M, d), floating point; N may be zero.
        in_proj_weight: (3 * d, d): query, key and value projections.
        in_proj_bias: (3 * d,) or None.
        out_proj_weight: (d, d).
        out_proj_bias: (d,) or None.
        num_heads: number of heads, a divisor of d.
        implementation: serve the call by this one (see :mod:`crane_kernels.dispatch`).

    Returns:
        (N, d), dtype of ``tokens``.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or not of the dtype of ``tokens``.
        ValueError: a shape or a device is wrong, or ``num_heads`` does not divide d.
        RuntimeError: the requested implementation cannot serve the call.
    """
    _, modalities, d = checks.tensor("tokens", tokens, 3).shape
    if modalities < 1 or d < 1:
        raise ValueError(
            f"tokens: found shape {tuple(tokens.shape)}, expected at least one token of width at least one"
        )
    checks.beside("in_proj_weight", in_proj_weight, (3 * d, d), tokens, "tokens")
    checks.beside("out_proj_weight", out_proj_weight, (d, d), tokens, "tokens")
    if in_proj_bias is not None:
        checks.beside("in_proj_bias", in_proj_bias, (3 * d,), tokens, "tokens")
    if out_proj_bias is not None:
        checks.beside("out_proj_bias", out_proj_bias, (d,), tokens, "tokens")
    if d % checks.integer("num_heads", num_heads, 1):
        raise ValueError(f"num_heads: found {num_heads}, expected a divisor of the width {d}")
    result: Tensor = dispatch.call(
        "modality_attention",
        implementation,
        tokens,
        in_proj_weight,
        in_proj_bias,
        out_proj_weight,
        out_proj_bias,
        num_heads,
    )
    return result
