"""Epoch order: a permutation, keyed, without state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.permutation import derive_key, permute


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000))
def test_every_row_once(size: int, seed: int, epoch: int) -> None:
    rows = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(rows), np.arange(size))


def test_a_position_alone_gives_the_same_row() -> None:
    whole = permute(np.arange(1000), 1000, 3, 5)
    assert [int(permute(np.array([index]), 1000, 3, 5)[0]) for index in (0, 17, 999)] == [
        whole[0],
        whole[17],
        whole[999],
    ]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(permute(np.arange(100), 100, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_order_is_well_mixed() -> None:
    """Neighbours end up far apart: the mean distance of a random permutation of n is about n / 3."""
    rows = permute(np.arange(10_000), 10_000, 0, 0)
    assert np.abs(np.diff(rows)).mean() == pytest.approx(10_000 / 3, rel=0.05)


def test_order_never_changes() -> None:
    """Released checkpoints resume on this order: a change here would be a change of format."""
    assert permute(np.arange(12), 12, 42, 0).tolist() == [3, 8, 0, 11, 6, 10, 9, 4, 2, 5, 1, 7]
    assert derive_key(1, 2, 3) == 7702586659592502839


def test_position_outside() -> None:
    with pytest.raises(ValueError, match="outside of 4 rows"):
        permute(np.array([4]), 4, 0, 0)
