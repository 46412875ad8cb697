"""BPR over a training batch, forward and backward, against the ways models write it.

The batch is that of a training step, so the cost follows the tables' sizes only through their gradients.
"""

from __future__ import annotations

from functools import partial

import peers
import pytest
import scales
import torch
from machine import Work
from measuring import Measure

from crane_kernels import bpr_loss
from crane_kernels.bpr_loss import reference

OPERATION = "bpr_loss"
DIM, BATCH = 64, 2048


def least_work(tables: int, case: str) -> Work:
    """Three rows a triple; backward also fills the gradients of the whole tables and adds to those rows."""
    rows = 3 * BATCH * DIM * 4
    flops = 6 * BATCH * DIM
    if case == peers.FORWARD:
        return Work(3 * BATCH * 8, rows, flops, table=rows)
    return Work(3 * BATCH * 8 + tables, 2 * rows, 3 * flops, table=rows)


@pytest.mark.parametrize("case", peers.CASES)
def test_bpr_loss(
    case: str, measure: Measure, scale: str, device: str, requested: str | None, not_compiled: str | None
) -> None:
    size, generator = scales.SIZES[scale], torch.Generator().manual_seed(0)
    user, item = (
        torch.randn(n, DIM, generator=generator).to(device).requires_grad_() for n in (size.users, size.items)
    )
    triples = [torch.randint(n, (BATCH,), generator=generator).to(device) for n in (size.users, *(size.items,) * 2)]

    def bound(loss: peers.Function) -> peers.Function:
        return lambda user, item: loss(user, item, *triples)

    others = {
        peers.PLAIN: bound(peers.plain_bpr),
        peers.COMPILED: not_compiled or bound(peers.compiled(reference.bpr_loss)),
    }
    measure(
        peers.run(bound(partial(bpr_loss, implementation=requested)), (user, item), case),
        {name: peers.run(other, (user, item), case) for name, other in others.items()},
        case=case,
        size=size.users + size.items,
        unit="users and items",
        work=least_work(user.nbytes + item.nbytes, case),
    )
