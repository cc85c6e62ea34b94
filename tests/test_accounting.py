"""The published figures, each in the convention that gives it (docs/methods.md)."""

import numpy as np
import pytest

from bitbert import accounting
from bitbert.accounting import Shape
from bitbert.packed import tensor_specs
from bitbert.presets import PRESETS

BASE = Shape()


def test_published_sizes() -> None:
    assert sum(accounting.count_parameters(BASE).values()) == 109_482_240
    full = accounting.size_full_precision(BASE).value
    assert full == pytest.approx(417.64, abs=0.005)
    assert accounting.size_bibert_table(BASE).value == pytest.approx(13.385, abs=0.0005)
    assert full / accounting.size_bibert_table(BASE).value == pytest.approx(31.2, abs=0.005)
    assert accounting.size_bipft_table(BASE).value == pytest.approx(14.961, abs=0.0005)


def test_published_operations() -> None:
    assert accounting.operations_full_precision(BASE, 128).value == pytest.approx(22.348, abs=0.0005)
    assert accounting.operations_binary(BASE, 128).value == pytest.approx(0.349, abs=0.0005)
    low, high = (accounting.operations_binary_with_elementwise(BASE, 128, norm_cost=cost).value for cost in (1, 5))
    assert 0.376 < low < high < 0.3865


def test_deployable_size_counts_what_the_runtime_needs() -> None:
    config = accounting.packed_config(BASE, PRESETS["bipft-b"], method="bipft-b")
    figure = accounting.size_deployable(config)
    assert figure.value == pytest.approx(15.58, abs=0.005)
    arrays = [np.zeros(shape, dtype) for dtype, shape in tensor_specs(config).values()]
    assert figure.value * 2**20 == sum(array.nbytes for array in arrays)
    without = accounting.packed_config(BASE, PRESETS["bipft-a"], method="bipft-a")
    assert (figure.value - accounting.size_deployable(without).value) * 2**20 == 4 * 46_140  # the estimators


def test_every_line_names_its_convention() -> None:
    rows = accounting.table(BASE, 128, accounting.packed_config(BASE, PRESETS["bipft-b"], method="bipft-b"))
    assert all(figure.convention for _, figure in rows)
    text = accounting.format_table(rows)
    assert "417.642 MiB" in text
    assert "109,482,240" in text


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    accounting.main()
    assert "15.580 MiB" in capsys.readouterr().out
