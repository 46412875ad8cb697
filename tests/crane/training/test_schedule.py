import pytest

from crane.config import TrainingConfig
from crane.training.schedule import learning_rate_factor


def test_constant() -> None:
    assert [learning_rate_factor(TrainingConfig(), e, e + 0.1) for e in (0.1, 5, 1000)] == [1, 1, 1]


def test_cosine_falls_from_one_to_zero() -> None:
    training = TrainingConfig(schedule="cosine", epochs=10)
    assert [learning_rate_factor(training, e, e + 0.5) for e in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_step_multiplies_every_few_epochs() -> None:
    training = TrainingConfig(schedule="step", decay_factor=0.1, decay_epochs=3)
    assert [learning_rate_factor(training, e, e + 0.1) for e in (2.9, 3, 5.5, 6)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_warmup_rises_linearly_and_multiplies() -> None:
    training = TrainingConfig(schedule="cosine", epochs=10, warmup_epochs=2)
    factors = [learning_rate_factor(training, e - 0.5, e) for e in (0.5, 1, 2.5)]
    assert factors == pytest.approx([0.25, 0.5 * 0.9938, 0.9045], abs=1e-4)
