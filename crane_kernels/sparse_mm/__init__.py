"""``torch.sparse.mm`` for code that has torch's sparse tensors, by the kernels of ``spmm``."""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels import dispatch
from crane_kernels.checks import FLOATING
from crane_kernels.graph import Graph
from crane_kernels.sparse_mm.cache import LAYOUTS, graph_of
from crane_kernels.spmm import spmm
from crane_kernels.triton_support import autocast


def sparse_mm(A: Tensor, x: Tensor, *, implementation: str | None = None) -> Tensor:
    """``torch.sparse.mm(A, x)``: a sparse torch tensor times a dense one.

    A is converted to a :class:`crane_kernels.Graph` by the first call, and the graph is kept as long as the memory of
    A's values lives; a change of A in place that torch's version counter sees (not: through ``.data``, or through the
    tensor A was made from) makes a new one. What ``spmm`` has no fast kernel for, and what it would not take, goes to
    ``torch.sparse.mm`` itself: values that require gradients or are NaN, a sparse ``x``, wrong shapes and dtypes,
    transforms of ``torch.func``, and tensors made in inference mode, whose changes torch does not count. Under autocast
    the product is in its dtype, as torch's.

    Args:
        A: (n, m), sparse COO (coalesced or not), CSR or CSC.
        x: (m, d), dense, dtype and device of A.
        implementation: serve the call by this one of ``spmm`` (see :mod:`crane_kernels.dispatch`).

    Returns:
        (n, d), dense; differentiable as ``torch.sparse.mm`` is.

    Raises:
        RuntimeError: the requested implementation cannot serve the call, or A is CSC and requires gradients, which
            torch itself fails to compute once they are asked for.
        Exception: what ``torch.sparse.mm`` raises for the same arguments.
    """
    if isinstance(A, Tensor) and A.layout == torch.sparse_csc and A.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "sparse_mm: A is in CSC layout and requires gradients, which torch does not compute: expected COO or CSR"
        )
    operands = _operands(A, x)
    if isinstance(operands, tuple) and (implementation is not None or _has_kernel(*operands)):
        return spmm(*operands, implementation=implementation)
    if implementation is not None:
        raise RuntimeError(f"sparse_mm: implementation {implementation!r} was requested but {operands}")
    result: Tensor = torch.sparse.mm(A, x)
    return result


def fast_operands(A: object, x: object) -> tuple[Graph, Tensor] | None:
    """What ``spmm`` takes for A and ``x`` if it is faster than torch, and to the same result; else None."""
    operands = _operands(A, x)
    return operands if isinstance(operands, tuple) and _has_kernel(*operands) else None


def _operands(A: object, x: object) -> tuple[Graph, Tensor] | str:
    """What ``spmm`` takes for A and ``x``, or why it does not multiply them, or not as ``torch.sparse.mm`` does."""
    if not isinstance(A, Tensor) or A.layout not in LAYOUTS or A.dim() != 2 or A.dense_dim():
        return "A is no sparse matrix in COO, CSR or CSC layout"
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.dim() != 2:
        return "x is no dense matrix"
    if x.shape[0] != A.shape[1]:
        return f"x has {x.shape[0]} rows and A has {A.shape[1]} columns"
    if A.is_meta or x.is_meta:
        return "the meta device holds no numbers"
    dtypes = {A.dtype, x.dtype}
    mixed = torch.is_autocast_enabled(x.device.type) and torch.float64 not in dtypes  # torch casts both
    if (len(dtypes) > 1 and not mixed) or not dtypes.issubset(FLOATING) or A.device != x.device:
        return f"A is {A.dtype} on {A.device} and x is {x.dtype} on {x.device}, not one floating-point dtype and device"
    if A.requires_grad and torch.is_grad_enabled():
        return "A requires gradients"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is at work"
    try:
        return graph_of(A), autocast(x)[0]
    except ValueError as error:
        return str(error)


def _has_kernel(graph: Graph, x: Tensor) -> bool:
    """Whether something faster than ``torch.sparse.mm`` serves the call, or something was asked for."""
    choice = dispatch.choose("spmm", None, graph, x)
    return choice.requested or choice.implementation.name != "reference"
