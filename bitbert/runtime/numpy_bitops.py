"""Bit products in numpy: XNOR or AND, then popcount. The reference that faster kernels are held to.

Packed operands are rows of uint64 words, bit 1 = negative for signs and bit 1 = one for {0, 1} codes; padding
bits are zero on both sides, so they add nothing.
"""

import numpy as np

from bitbert.packed import pack_bits

_BLOCK_WORDS = 1 << 18
"""Words of the widest temporary (2 MiB): larger ones fall out of the cache."""


def pack_words(bits: np.ndarray) -> np.ndarray:
    """bool (..., n) -> uint64 (..., ceil(n / 64))."""
    return pack_bits(bits).view("<u8")


def sign_products(left: np.ndarray, right: np.ndarray, num_bits: int) -> np.ndarray:
    """Dot products of ±1 rows: num_bits - 2 * popcount(left XOR right).

    Args:
        left: uint64 (m, words); right: uint64 (n, words); both packed signs of ``num_bits`` values a row.

    Returns:
        int32 (m, n), values in [-num_bits, num_bits].
    """
    return num_bits - 2 * _count(np.bitwise_xor, left, right)


def mask_products(mask: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Dot products of {0, 1} rows with ±1 rows: popcount(mask) - 2 * popcount(mask AND signs).

    Args:
        mask: uint64 (m, words), bit 1 = one; signs: uint64 (n, words), bit 1 = negative.

    Returns:
        int32 (m, n).
    """
    ones = np.bitwise_count(mask).sum(axis=-1, dtype=np.int32)
    return ones[:, None] - 2 * _count(np.bitwise_and, mask, signs)


def _count(combine: np.ufunc, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    counts = np.empty((len(left), len(right)), dtype=np.int32)
    step = max(1, _BLOCK_WORDS // max(1, right.size))
    for start in range(0, len(left), step):
        block = combine(left[start : start + step, None, :], right[None, :, :])
        counts[start : start + step] = np.bitwise_count(block).sum(axis=-1, dtype=np.int32)
    return counts
