"""Masks are a function of (seed, epoch, row), with BERT's shares."""

from typing import Any

import numpy as np
import pytest

from bitbert.pretrain.masking import mask_row
from bitbert.shards import TokenRow

TOKENIZER: dict[str, Any] = {"cls_id": 1, "sep_id": 2, "mask_id": 3, "vocab_size": 1000}


def long_row(length: int = 4000) -> TokenRow:
    ids = np.concatenate([[1], np.arange(length - 3) % 900 + 10, [2], [500], [2]])
    return TokenRow(ids.astype(np.uint16), length // 2, 0)


def test_same_arguments_same_mask_and_any_other_differs() -> None:
    def mask(**change: int) -> list[int]:
        return mask_row(
            long_row(60), TOKENIZER, **({"probability": 0.15, "seed": 1, "epoch": 2, "index": 3} | change)
        ).positions.tolist()

    assert mask() == mask()
    assert len({tuple(mask(**change)) for change in ({}, {"seed": 9}, {"epoch": 9}, {"index": 9})}) == 4


def test_golden_mask() -> None:
    """A run resumes on these masks for ever."""
    masked = mask_row(long_row(20), TOKENIZER, probability=0.15, seed=42, epoch=0, index=7)
    assert (masked.positions.tolist(), masked.labels.tolist()) == GOLDEN


GOLDEN = ([5, 7, 12], [14, 16, 21])


def test_shares() -> None:
    row = long_row(40_000)
    masked = mask_row(row, TOKENIZER, probability=0.15, seed=0, epoch=0, index=0)
    assert len(masked.positions) == round(0.15 * (len(row.input_ids) - 3))
    original = np.asarray(row.input_ids, dtype=np.int64)
    assert np.array_equal(masked.labels, original[masked.positions])
    replaced = masked.input_ids[masked.positions]
    assert (replaced == 3).mean() == pytest.approx(0.8, abs=0.02)
    assert (replaced == masked.labels).mean() == pytest.approx(0.1, abs=0.02)
    untouched = np.setdiff1d(np.arange(len(original)), masked.positions)
    assert np.array_equal(masked.input_ids[untouched], original[untouched])


def test_special_tokens_are_never_masked_and_one_token_always_is() -> None:
    row = TokenRow(np.array([1, 50, 2, 60, 2], np.uint16), 3, 0)
    for index in range(200):
        positions = mask_row(row, TOKENIZER, probability=0.15, seed=0, epoch=0, index=index).positions
        assert len(positions) == 1
        assert positions[0] in (1, 3)


def test_chosen_positions_are_spread_evenly() -> None:
    row = TokenRow(np.concatenate([[1], np.full(40, 50), [2]]).astype(np.uint16), 42, 0)
    counts = np.zeros(42)
    for index in range(2000):
        counts[mask_row(row, TOKENIZER, probability=0.15, seed=0, epoch=0, index=index).positions] += 1
    assert counts[1:41] == pytest.approx(np.full(40, 300), rel=0.25)
