"""Bit products on the fastest kernels at hand: the native library's, or numpy's.

:mod:`bitbert.runtime.numpy_bitops` says what the products are and is what every kernel is tested against.
"""

import os

import numpy as np

from bitbert.errors import UserError
from bitbert.runtime import native, numpy_bitops

NUMPY = "numpy"
ISA_VARIABLE = "BITBERT_ISA"


def available_isas() -> tuple[str, ...]:
    """Names that ``isa`` arguments and BITBERT_ISA accept here, fastest first; numpy is always last."""
    return (*native.instruction_sets(), NUMPY)


def choose_isa(isa: str | None = None) -> str:
    """The instruction set to use: ``isa``, else what BITBERT_ISA says, else the fastest.

    Raises:
        UserError: this machine does not have the one that was asked for.
    """
    wanted = isa or os.environ.get(ISA_VARIABLE)
    if wanted == NUMPY:
        return NUMPY
    available = available_isas()
    wanted = wanted or available[0]
    if wanted not in available:
        raise UserError(
            f"instruction set {wanted!r} is not available here, wanted one of {', '.join(available)}; "
            f"change or unset {ISA_VARIABLE}"
        )
    return wanted


def sign_products(left: np.ndarray, right: np.ndarray, num_bits: int, isa: str | None = None) -> np.ndarray:
    """Dot products of ±1 rows, num_bits - 2 * popcount(left XOR right).

    Args:
        left: uint64 (m, words); right: uint64 (n, words); both packed signs of ``num_bits`` values a row.
        isa: see :func:`choose_isa`.

    Returns:
        int32 (m, n).
    """
    chosen = choose_isa(isa)
    if chosen == NUMPY:
        return numpy_bitops.sign_products(left, right, num_bits)
    return native.Matrix(right, num_bits, chosen).multiply(left, mask=False)


def mask_products(mask: np.ndarray, signs: np.ndarray, isa: str | None = None) -> np.ndarray:
    """Dot products of {0, 1} rows with ±1 rows, popcount(mask) - 2 * popcount(mask AND signs).

    Args:
        mask: uint64 (m, words), bit 1 = one; signs: uint64 (n, words), bit 1 = negative.
        isa: see :func:`choose_isa`.

    Returns:
        int32 (m, n).
    """
    chosen = choose_isa(isa)
    if chosen == NUMPY:
        return numpy_bitops.mask_products(mask, signs)
    return native.Matrix(signs, 64 * signs.shape[1], chosen).multiply(mask, mask=True)
