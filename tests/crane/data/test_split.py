"""The splitter and the k-core: what must hold for any interactions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crane.data.kcore import k_core
from crane.data.split import TEST, TRAIN, VALIDATION, split_interactions, split_sizes

users_strategy = st.lists(st.integers(0, 8), min_size=1, max_size=120).map(lambda u: np.array(u, dtype=np.int64))
ratios_strategy = st.tuples(st.floats(0.01, 10), st.floats(0, 10), st.floats(0, 100))


@settings(deadline=None, max_examples=150)
@given(users_strategy, ratios_strategy, st.integers(0, 9), st.booleans())
def test_split_invariants(users, ratios, seed, by_time):
    times = np.random.default_rng(seed).integers(0, 5, len(users)) if by_time else None
    labels = split_interactions(users, ratios, times=times, seed=seed)
    assert labels.shape == users.shape  # complete, and disjoint: one label each
    assert set(labels.tolist()) <= {TRAIN, VALIDATION, TEST}
    counts = np.bincount(users)
    n_validation, n_test = split_sizes(counts, ratios)
    present = counts > 0
    assert (np.bincount(users[labels == TRAIN], minlength=len(counts))[present] >= 1).all()
    np.testing.assert_array_equal(np.bincount(users[labels == VALIDATION], minlength=len(counts)), n_validation)
    np.testing.assert_array_equal(np.bincount(users[labels == TEST], minlength=len(counts)), n_test)
    if times is not None:
        for user in np.flatnonzero(present):
            spans = [times[(users == user) & (labels == label)] for label in (TRAIN, VALIDATION, TEST)]
            filled = [span for span in spans if len(span)]
            assert all(a.max() <= b.min() for a, b in pairwise(filled))


def test_sizes_are_the_documented_ones():
    counts = np.array([0, 1, 2, 3, 10, 19, 20, 30, 100])
    validation, test = split_sizes(counts, (8, 1, 1))
    assert validation.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 10]
    assert test.tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 10]
    validation, test = split_sizes(counts, (0.8, 0.2, 0.0))
    assert validation.tolist() == [0, 0, 1, 1, 2, 3, 4, 6, 20]
    assert not test.any()


def test_random_split_repeats_and_depends_on_the_seed():
    users = np.repeat(np.arange(50), 20)
    first = split_interactions(users, (8, 1, 1), seed=1)
    np.testing.assert_array_equal(first, split_interactions(users, (8, 1, 1), seed=1))
    assert (first != split_interactions(users, (8, 1, 1), seed=2)).any()


def test_equal_times_keep_the_order_given():
    labels = split_interactions(np.zeros(5, dtype=np.int64), (3, 1, 1), times=np.zeros(5))
    assert labels.tolist() == [TRAIN, TRAIN, TRAIN, VALIDATION, TEST]


def _slow_k_core(pairs, k):
    pairs = list(pairs)
    while True:
        degree = {}
        for user, item in pairs:
            for node in (("u", user), ("i", item)):
                degree[node] = degree.get(node, 0) + 1
        kept = [(u, i) for u, i in pairs if degree["u", u] >= k and degree["i", i] >= k]
        if len(kept) == len(pairs):
            return kept
        pairs = kept


@settings(deadline=None, max_examples=150)
@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60), st.integers(0, 5))
def test_k_core_is_the_iterated_definition(pairs, k):
    ordered = sorted(pairs)
    array = np.array(ordered, dtype=np.int64).reshape(-1, 2)
    keep = k_core(array[:, 0], array[:, 1], k)
    assert [pair for pair, kept in zip(ordered, keep, strict=True) if kept] == _slow_k_core(ordered, k)


@pytest.mark.parametrize("length", [2, 4_000])
def test_k_core_peels_a_long_chain(length):
    """Each round removes only the two ends, so rescanning everything each round would never finish."""
    steps = np.arange(length)
    users, items = np.concatenate([steps, steps[1:]]), np.concatenate([steps, steps[:-1]])
    assert not k_core(users, items, 2).any()
