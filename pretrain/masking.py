"""Dynamic masking from (seed, epoch, row): no random state, the same on any number of ranks and restarts.

Each position's random number is a hash of (seed, epoch, row, position, purpose). 15 % of a row's ordinary tokens
are chosen, exactly; of the chosen, 80 % become [MASK], 10 % a random token and 10 % stay (Devlin et al., 2018).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bitbert.permutation import derive_key, mix64
from bitbert.shards import TokenRow

_CHOOSE, _REPLACE, _TOKEN = 1, 2, 3
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class MaskedRow:
    """One row after masking: ids with replacements, the chosen positions and the original ids there."""

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


def mask_row(
    row: TokenRow, tokenizer: dict[str, Any], *, probability: float, seed: int, epoch: int, index: int
) -> MaskedRow:
    """Mask one row.

    Args:
        row: ids with [CLS] and [SEP] in place, shape (n,).
        tokenizer: ``Tokenizer.describe()`` of the shards.
        index: the row's number in the shard folder, which decides its masks together with ``seed`` and ``epoch``.

    Returns:
        ids (n,) int64; max(1, round(probability * ordinary tokens)) positions, ascending; their labels, int64.
    """
    ids = np.asarray(row.input_ids, dtype=np.int64)
    ordinary = np.flatnonzero((ids != tokenizer["cls_id"]) & (ids != tokenizer["sep_id"]))
    count = min(len(ordinary), max(1, round(probability * len(ordinary))))
    order = np.argsort(_hashes(len(ids), _CHOOSE, seed, epoch, index)[ordinary], kind="stable")
    positions = np.sort(ordinary[order[:count]])
    labels = ids[positions]
    fate = _hashes(len(ids), _REPLACE, seed, epoch, index)[positions].astype(np.float64) / 2.0**64
    random_ids = (_hashes(len(ids), _TOKEN, seed, epoch, index)[positions] % np.uint64(tokenizer["vocab_size"])).astype(
        np.int64
    )
    ids = ids.copy()
    ids[positions] = np.where(fate < 0.8, tokenizer["mask_id"], np.where(fate < 0.9, random_ids, labels))
    return MaskedRow(ids, positions, labels)


def _hashes(length: int, purpose: int, seed: int, epoch: int, index: int) -> np.ndarray:
    key = np.uint64(derive_key(seed, epoch, index, purpose))
    return mix64((np.arange(length, dtype=np.uint64) + np.uint64(1)) * _GOLDEN + key)
