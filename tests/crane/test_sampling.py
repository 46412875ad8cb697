import numpy as np
import pytest
import torch

from crane.data import Dataset, Interactions
from crane.sampling import EpochSampler


def make_dataset(users: list[int], items: list[int]) -> Dataset:
    empty = Interactions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    train = Interactions.from_pairs(np.array(users), np.array(items))
    return Dataset("made", np.arange(max(users) + 1), np.arange(12), train, empty, empty)


@pytest.fixture
def dataset() -> Dataset:
    generator = np.random.default_rng(1)
    pairs = [(u, i) for u in range(30) for i in generator.choice(12, size=7, replace=False)]
    return make_dataset([p[0] for p in pairs], [p[1] for p in pairs])


def collect(sampler: EpochSampler, epoch: int) -> torch.Tensor:
    return torch.cat([torch.stack(batch) for batch in sampler.epoch(epoch)], dim=1)


def test_each_training_pair_comes_once_an_epoch(dataset: Dataset) -> None:
    triples = collect(EpochSampler(dataset, 16, seed=0), epoch=1)
    seen = sorted(zip(triples[0].tolist(), triples[1].tolist(), strict=True))
    assert seen == sorted(zip(dataset.train.users.tolist(), dataset.train.items.tolist(), strict=True))


def test_negatives_are_never_training_items(dataset: Dataset) -> None:
    pairs = set(zip(dataset.train.users.tolist(), dataset.train.items.tolist(), strict=True))
    for epoch in range(5):
        triples = collect(EpochSampler(dataset, 16, seed=0), epoch)
        assert not pairs & set(zip(triples[0].tolist(), triples[2].tolist(), strict=True))


def test_batches_have_the_size_and_types_asked_for(dataset: Dataset) -> None:
    sampler = EpochSampler(dataset, 64, seed=0)
    batches = list(sampler.epoch(1))
    assert len(batches) == len(sampler) == 4
    assert [len(batch[0]) for batch in batches] == [64, 64, 64, 18]
    assert all(part.dtype == torch.int64 and part.shape == batch[0].shape for batch in batches for part in batch)


def test_an_epoch_depends_on_seed_and_number_alone(dataset: Dataset) -> None:
    first = EpochSampler(dataset, 64, seed=3)
    collect(first, 1)
    collect(first, 2)
    assert torch.equal(collect(first, 7), collect(EpochSampler(dataset, 64, seed=3), 7))
    assert not torch.equal(collect(first, 7), collect(first, 8))
    assert not torch.equal(collect(first, 7), collect(EpochSampler(dataset, 64, seed=4), 7))


def test_batch_size_does_not_change_the_triples(dataset: Dataset) -> None:
    assert torch.equal(collect(EpochSampler(dataset, 5, 0), 1), collect(EpochSampler(dataset, 500, 0), 1))


def test_no_training_interactions_are_refused() -> None:
    empty = Interactions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    nobody = Dataset("nobody", np.zeros(0, np.int64), np.arange(3), empty, empty, empty)
    with pytest.raises(ValueError, match="the data set nobody has no training interactions"):
        EpochSampler(nobody, 8, 0)


def test_user_with_every_item_is_refused_by_name() -> None:
    dataset = make_dataset([0, *[1] * 12], [3, *range(12)])
    with pytest.raises(ValueError, match="the user 1 has every one of the 12 items in training"):
        EpochSampler(dataset, 16, seed=0)
