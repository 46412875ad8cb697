"""Ranking all items for some users: what evaluation and recommendation share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crane_kernels import Graph, masked_topk

# Rankings of this many users are held at once: at k = 50 they take 20 MB.
BLOCK = 32_768


def ranked_blocks(
    user: Tensor, item: Tensor, seen: Graph | None, users: Tensor, k: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rank the unseen items for the given users, some thousand users at a time.

    Args:
        user: (U, d) embeddings.
        item: (I, d) embeddings.
        seen: U x I graph of the items not to rank, or None.
        users: (n,) int64 rows of ``user``, on its device.
        k: longest ranking wanted.

    Yields:
        The block's users (b,), their best scores (b, k), descending, and the items (b, k) int64; where fewer items are
        left the rest is (-inf, -1).
    """
    everyone = len(users) == len(user) and torch.equal(users, torch.arange(len(user), device=users.device))
    for block in torch.split(users, BLOCK):
        whole = everyone and len(block) == len(users)
        wanted = user if whole else user[block]
        masked = seen if whole or seen is None else select_rows(seen, block)
        yield block, *masked_topk(wanted, item, masked, k)


def select_rows(graph: Graph, rows: Tensor) -> Graph:
    """The graph whose row i is row ``rows[i]`` of ``graph``; ``rows`` (n,) int64. Values become ones."""
    start, count = graph.rowptr[rows], graph.rowptr.diff()[rows]
    rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    edge = torch.arange(int(rowptr[-1]), device=rows.device) + torch.repeat_interleave(start - rowptr[:-1], count)
    return Graph(rowptr, graph.col[edge], None, (len(rows), graph.n_cols))


def check_finite(user: Tensor, item: Tensor) -> None:
    """Refuse embeddings whose scores cannot be ranked.

    No score exceeds the product of the largest norms, so one pass over the embeddings checks all U x I scores.

    Raises:
        ValueError: a row is not finite, or a dot product could overflow.
    """
    bound = 1.0
    for name, x in (("user", user), ("item", item)):
        norms = torch.linalg.vector_norm(x.detach(), dim=1, dtype=torch.float64)
        broken = torch.nonzero(~norms.isfinite())
        if len(broken):
            raise ValueError(f"{name}: row {int(broken[0])} is not finite, so its scores cannot be ranked")
        bound *= float(norms.max()) if len(norms) else 0.0
    if bound > torch.finfo(user.dtype).max:
        raise ValueError(f"user and item: their dot products can reach {bound:.1e}, which overflows {user.dtype}")
