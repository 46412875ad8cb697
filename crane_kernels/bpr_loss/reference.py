"""The meaning of ``bpr_loss`` in plain PyTorch.

On the CPU the backward of ``index_select`` adds in the order of the batch, so repeated indices give the same bits on
every run; that of ``x[index]`` need not.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bpr_loss(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Mean of -log sigmoid(<u, p> - <u, n>) over the triples: scalar."""
    difference = item.index_select(0, positives) - item.index_select(0, negatives)
    margin = (user.index_select(0, users) * difference).sum(1)
    return -F.logsigmoid(margin).mean()
