"""The same models, training loop and evaluation written as research code usually is: the baseline of the benchmarks.

Ordinary choices of that code, kept on purpose: an uncoalesced COO adjacency multiplied by ``torch.sparse.mm`` in every
layer, recursive attention in its direct form with N x d intermediate products, negatives drawn user by user in Python,
metrics computed user by user in Python over batched ``torch.topk``, the default ``torch.optim.Adam``. What they compute
equals what :mod:`crane` computes; tests assert it.
"""
