"""The 20 best unseen items of every user, against blocks of scores and torch.topk, and faiss's exact search."""

from __future__ import annotations

from functools import partial

import peers
import scales
import torch
from machine import Work
from measuring import Measure
from torch import Tensor

from crane_kernels import Graph, masked_topk

OPERATION = "masked_topk"
SCALES = ("baby", "sports")
DIM, K = 64, 20
BLOCK = 4096  # users, as MMRec evaluates
MOST_USERS = 10_000  # the time is proportional to them


def blocks_and_topk(user: Tensor, item: Tensor, seen: Graph) -> tuple[Tensor, Tensor]:
    """A batch of users at a time: all scores, seen items overwritten by index, torch.topk."""
    best = []
    for start in range(0, len(user), BLOCK):
        scores = user[start : start + BLOCK] @ item.T
        rowptr = seen.rowptr[start : start + BLOCK + 1]
        rows = torch.repeat_interleave(rowptr.diff())
        scores[rows, seen.col[rowptr[0] : rowptr[-1]].long()] = -1e10
        best.append(torch.topk(scores, K, dim=-1))
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def agree(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """The same scores; those of faiss, which cannot leave out seen items, are at least as high."""
    assert bool((theirs[0].to(ours[0].device) >= ours[0] - 1e-3).all())  # faiss's are on the CPU


def test_masked_topk(measure: Measure, scale: str, device: str, requested: str | None, in_full: bool) -> None:
    size, generator = scales.SIZES[scale], torch.Generator().manual_seed(0)
    n_users = size.users if in_full else min(size.users, MOST_USERS)
    user, item = (torch.randn(n, DIM, generator=generator).to(device) for n in (n_users, size.items))
    users, items = scales.interactions(scale)
    taken = users < n_users
    seen = Graph.from_edges(users[taken], items[taken], shape=(n_users, size.items)).to(device)
    measure(
        partial(masked_topk, user, item, seen, K, implementation=requested),
        {
            "blocks of scores and torch.topk": partial(blocks_and_topk, user, item, seen),
            "faiss, exact, without the mask": peers.faiss_search(user, item, K),
        },
        size=n_users * size.items,
        unit="users times items",
        work=Work(user.nbytes + item.nbytes + n_users * K * 12, 0, 2 * n_users * size.items * DIM),
        agree=agree,
    )
