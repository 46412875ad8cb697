"""The meaning of ``recursive_cross_modal_attention`` in plain PyTorch, in two forms that are equal but for rounding.

Both refine all modalities of a recursion from the same features (a simultaneous update).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crane_kernels import extension
from crane_kernels.recompute import recomputed
from crane_kernels.triton_support import without_autocast


def direct_form(
    x: Tensor,
    w_joint: Tensor,
    b_joint: Tensor,
    w_attend: Tensor,
    w_out: Tensor,
    recursions: int,
    scale: float,
    rows: Tensor | None = None,
) -> Tensor:
    """The formulas as they are written, with the joint latent features E (N, d) of each recursion in memory."""
    n, modalities, d = x.shape
    for _ in range(recursions):
        joint = torch.addmm(b_joint, x.reshape(n, modalities * d), w_joint)
        correlation = torch.tanh(torch.einsum("nmd,ne->mde", x, joint) * scale)
        projected = torch.einsum("nmd,mde->nme", x, w_attend)
        attended = torch.relu(torch.einsum("nmd,mde->nme", projected, correlation))
        x = x + torch.einsum("nmd,mde->nme", attended, w_out)
    return x if rows is None else x.index_select(0, rows)


def gram_form(
    x: Tensor,
    w_joint: Tensor,
    b_joint: Tensor,
    w_attend: Tensor,
    w_out: Tensor,
    recursions: int,
    scale: float,
    rows: Tensor | None = None,
) -> Tensor:
    """The same from the Gram matrix of X = [X_1 | ... | X_M], so that E never exists.

    X_m^T E = (X_m^T X) W_E + (X_m^T 1) b_E^T, and W_m C_m is a d x d product: a recursion is one small d x d
    computation and one pass over the rows, X_m <- X_m + relu(X_m B_m) V_m with B_m = W_m C_m. Where only some ``rows``
    are wanted, the last pass is over them alone.
    """
    if recursions == 0 and rows is not None:
        return x.index_select(0, rows)
    for recursion in range(recursions):
        correlation = _correlation(x, w_joint, b_joint, scale).view_as(w_attend).to(w_attend.dtype)
        mixed = w_attend @ correlation
        if rows is not None and recursion == recursions - 1:
            x = x.index_select(0, rows)
        refined = [torch.addmm(part, torch.relu_(part @ mixed[m]), w_out[m]) for m, part in enumerate(x.unbind(1))]
        x = torch.stack(refined, 1)
    return x


def _correlation(x: Tensor, w_joint: Tensor, b_joint: Tensor, scale: float) -> Tensor:
    """C of all modalities, (Md, d), in float32 at least: sums over all rows may exceed what half precision holds."""
    with without_autocast(x):
        wide = torch.promote_types(x.dtype, torch.float32)
        gram, sums = _moments(x.flatten(1).to(wide))
        return torch.tanh((gram @ w_joint.to(wide) + sums[:, None] * b_joint.to(wide)) * scale)


def recursive_cross_modal_attention(
    x: Tensor,
    w_joint: Tensor,
    b_joint: Tensor,
    w_attend: Tensor,
    w_out: Tensor,
    recursions: int,
    scale: float,
    rows: Tensor | None = None,
    memory: str = "fast",
) -> Tensor:
    """The Gram form; where ``memory`` is "low", backward begins by running it again from its arguments."""
    arguments = x, w_joint, b_joint, w_attend, w_out, recursions, scale, rows
    return gram_form(*arguments) if memory == "fast" else recomputed(gram_form, *arguments)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix and column sums of X; torch.func and forward-mode differentiation take no function of its kind."""
    if extension.refuses_derivatives() is not None:
        return x.T @ x, x.sum(0)
    result: tuple[Tensor, Tensor] = _Moments.apply(x)  # type: ignore[no-untyped-call]
    return result


class _Moments(torch.autograd.Function):
    """Gram matrix (Md, Md) and column sums (Md,) of X (N, Md).

    The Gram matrix has gradient X (D + D^T), one product; autograd alone would spend two on it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x.T @ x, x.sum(0)

    @staticmethod
    def backward(ctx: Any, grad_gram: Tensor, grad_sums: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.addmm(grad_sums, x, grad_gram + grad_gram.T)
