"""Bit products of every instruction set that this processor has, against plain products."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.errors import UserError
from bitbert.runtime import native
from bitbert.runtime.bitops import available_isas, choose_isa, mask_products, sign_products
from bitbert.runtime.numpy_bitops import pack_words

ISAS = available_isas()


def test_the_library_was_built() -> None:
    assert "portable" in ISAS
    assert ISAS[-1] == "numpy"


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), width=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_products_equal_plain_products(isa: str, rows: int, columns: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left, right = random.random((rows, width)) < 0.5, random.random((columns, width)) < 0.5
    signs = np.where(right, -1, 1)
    words = pack_words(left), pack_words(right)
    assert np.array_equal(sign_products(*words, width, isa), np.where(left, -1, 1) @ signs.T)
    assert np.array_equal(mask_products(*words, isa), left.astype(int) @ signs.T)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_rows", [15, 16, 17, 32, 33, 48, 129, 300])
@pytest.mark.parametrize("width", [1, 64, 12 * 64, 12 * 64 + 1, 25 * 64])
def test_blocks_of_rows_equal_plain_products(isa: str, num_rows: int, width: int) -> None:
    """Around whole tiles of rows, and around the words that are bytes at a time."""
    random = np.random.default_rng(num_rows + width)
    left, right = random.random((num_rows, width)) < 0.5, random.random((65, width)) < 0.5
    signs = np.where(right, -1, 1).T
    words = pack_words(left), pack_words(right)
    assert np.array_equal(sign_products(*words, width, isa), np.where(left, -1, 1) @ signs)
    assert np.array_equal(mask_products(*words, isa), left.astype(int) @ signs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [64 * 31, 64 * 32 + 1, 64 * 150])
def test_long_rows_do_not_overflow_partial_sums(isa: str, width: int) -> None:
    ones = pack_words(np.ones((19, width), dtype=bool))
    zeros = pack_words(np.zeros((33, width), dtype=bool))
    assert (sign_products(ones, zeros, width, isa) == -width).all()
    assert (mask_products(ones, ones, isa) == -width).all()


def test_no_rows_give_no_products() -> None:
    words = pack_words(np.ones((3, 10), dtype=bool))
    assert native.Matrix(words, 10).multiply(words[:0], mask=False).shape == (0, 3)


def test_unfit_operands_are_refused() -> None:
    words = pack_words(np.ones((3, 10), dtype=bool))
    with pytest.raises(UserError, match="at most 64 bits a word"):
        native.Matrix(words, 65)
    with pytest.raises(UserError, match="left rows have 2 words, wanted 1"):
        native.Matrix(words, 10).multiply(np.zeros((1, 2), np.uint64), mask=False)


def test_instruction_sets_are_chosen_by_name_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITBERT_ISA", raising=False)
    assert choose_isa() == ISAS[0]
    monkeypatch.setenv("BITBERT_ISA", "portable")
    assert choose_isa() == "portable"
    assert choose_isa("numpy") == "numpy"
    monkeypatch.setenv("BITBERT_ISA", "sse9")
    with pytest.raises(UserError, match=r"'sse9' is not available here, wanted one of .*portable, numpy"):
        choose_isa()


def test_absent_hardware_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instruction_sets", lambda: ("avx2", "portable"))
    monkeypatch.setenv("BITBERT_ISA", "amx")
    with pytest.raises(UserError, match="'amx' is not available here, wanted one of avx2, portable, numpy"):
        choose_isa()


@pytest.mark.parametrize("isa", native.instruction_sets())
def test_peak_is_a_rate(isa: str) -> None:
    assert 1e8 < native.peak_macs_per_second(isa) < 1e14
    with pytest.raises(UserError, match="'none' is not one that this processor runs"):
        native.peak_macs_per_second("none")
