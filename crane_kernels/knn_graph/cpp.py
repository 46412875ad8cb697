"""``knn_graph`` by the compiled ``masked_topk``: float32 finds candidates, exact cosines decide between them."""

from __future__ import annotations

import torch
from torch import Tensor

from crane_kernels.graph import Graph
from crane_kernels.knn_graph import reference
from crane_kernels.selection import largest

WIDEST = 512  # above, the product takes most of the time, and the compiled kernel's is no faster than BLAS
EXTRA = 8  # candidates beyond those wanted


def refuses(features: Tensor, _k: int) -> str | None:
    """Why the compiled kernel cannot find the neighbours of ``features``; ``None`` when it can."""
    if features.device.type != "cpu":
        return f"features is on device {features.device}, not on the CPU"
    if features.shape[1] > WIDEST:
        return f"features has width {features.shape[1]}, above {WIDEST}"
    if features.shape[0] >= 2**31:
        return f"features has {features.shape[0]} rows, more than 2^31 - 1"
    return None


def knn_graph(features: Tensor, k: int) -> Graph:
    """Row-normalised graph of the k rows of the highest cosine on the CPU: (I, d) -> Graph (I, I)."""
    return reference.graph_of(features, k, _nearest)


def _nearest(directions: Tensor, k: int) -> Tensor:
    """What :func:`reference.nearest` gives, for all rows."""
    n, d = directions.shape
    wanted = k + EXTRA
    if wanted >= n:
        return reference.nearest(directions, k)
    unit = directions.float() / reference.STEPS
    scores, candidates = torch.ops.crane_kernels.masked_topk(unit, unit, None, None, wanted)
    # No row that is not a candidate has a higher cosine: its score is no higher, and this bounds the error of a score,
    # the rounding of both rows to float32 included (Higham 2002, section 3.1; the rows' length is one but for 1e-6).
    highest = scores[:, -1].double() + 1.01 * (d + 3) * 2.0**-24
    candidates = candidates.sort(dim=1).values
    found, sure = [], []
    for block in torch.split(torch.arange(n), max(1, reference.CHUNK_ENTRIES // (wanted * d))):
        rows = directions[candidates[block].flatten()].double().view(len(block), wanted, d)
        exact = torch.bmm(rows, directions[block].double().unsqueeze(2)).squeeze(2)
        best, places = largest(exact, k)
        found.append(candidates[block].gather(1, places).sort(dim=1).values)
        sure.append(best[:, -1] / reference.STEPS**2 > highest[block])
    neighbours = torch.cat(found)
    doubtful = (~torch.cat(sure)).nonzero()[:, 0]
    return neighbours.index_copy(0, doubtful, reference.nearest(directions, k, doubtful))
