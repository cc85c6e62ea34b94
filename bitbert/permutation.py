"""The order of rows in an epoch: a keyed permutation, so a position in the data is one integer.

A balanced Feistel network over the smallest even number of bits that holds ``size``, with cycle walking for
values outside it (Black and Rogaway, 2002). It needs no memory and gives row number ``i`` of epoch ``e``
directly, whatever the number of ranks, workers or restarts.
"""

import numpy as np

NUM_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def mix64(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al., 2014): uint64 array -> well-mixed uint64 array of the same shape."""
    value = value.astype(np.uint64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """One 64-bit key from any number of integers; the order of the parts counts."""
    key = 0
    for part in parts:
        key = int(mix64(np.array([(key + 0x9E3779B97F4A7C15 + (part & _MASK64)) & _MASK64], dtype=np.uint64))[0])
    return key


def permute(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Row numbers at the given positions of epoch ``epoch``.

    Args:
        positions: integers in [0, size), any shape.
        size: number of rows.

    Returns:
        int64 array of the same shape; over all positions each row occurs exactly once.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    values = np.asarray(positions, dtype=np.uint64)
    if values.size and int(values.max()) >= size:
        raise ValueError(f"position {int(values.max())} is outside of {size} rows")
    round_keys = [derive_key(seed, epoch, number) for number in range(NUM_ROUNDS)]
    values = _feistel(values, half_bits, round_keys)
    outside = values >= size
    while outside.any():
        values = np.where(outside, _feistel(values, half_bits, round_keys), values)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, round_keys: list[int]) -> np.ndarray:
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> half, values & mask
    for key in round_keys:
        left, right = right, left ^ (mix64(right + np.uint64(key)) & mask)
    return (left << half) | right
