"""Batches by the nodes they touch."""

import torch

from crane.models.batch import Batch

USERS, POSITIVES, NEGATIVES = torch.tensor([4, 1, 4, 0]), torch.tensor([2, 2, 0, 5]), torch.tensor([3, 5, 3, 0])


def test_places_lead_back_to_the_triples() -> None:
    batch = Batch.of(USERS, POSITIVES, NEGATIVES, offset=7)
    assert batch.nodes.tolist() == [0, 1, 4, 7, 9, 10, 12]
    assert torch.equal(batch.nodes[batch.users], USERS)
    assert torch.equal(batch.nodes[batch.positives], POSITIVES + 7)
    assert torch.equal(batch.nodes[batch.negatives], NEGATIVES + 7)
    users, positives, negatives = batch.places()
    assert torch.equal(batch.user_rows[users], USERS)
    assert torch.equal(batch.item_rows[positives], POSITIVES)
    assert torch.equal(batch.item_rows[negatives], NEGATIVES)


def test_norms_count_every_mention() -> None:
    batch = Batch.of(USERS, POSITIVES, NEGATIVES, offset=7)
    x = torch.randn(13, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mentioned = torch.cat([x[USERS], x[POSITIVES + 7], x[NEGATIVES + 7]])
    torch.testing.assert_close(batch.half_squared_norm(x[batch.nodes]), mentioned.square().sum() / 8)
