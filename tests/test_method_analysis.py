"""The published analysis, computed again: what is reproduced, and what is only near."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import method_analysis as analysis
from tests.conftest import REPOSITORY


def test_wrong_directions_fall_with_the_bits_as_published() -> None:
    rows = analysis.wrong_directions()
    shares = [row["percent"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    for row in rows:
        assert row["percent"] == pytest.approx(row["published_percent"], abs=0.2)
        assert abs(row["sampling_deviations"]) < 1


def test_wrong_directions_are_what_sampling_finds() -> None:
    random = np.random.default_rng(0)
    x, t = random.standard_normal((2, 400_000))
    for bits in (1, 2, 8):
        wrong = np.sign(x - t) != np.sign(analysis.quantize_symmetric(x, bits) - t)
        assert wrong.mean() == pytest.approx(analysis.wrong_direction_share(bits), abs=0.002)


def test_the_convention_is_the_nearest_one() -> None:
    distances = analysis.quantizer_distances()
    assert min(distances, key=lambda name: distances[name]) == "2^b levels, ends included"
    assert distances["2^b levels, ends included"] < 0.2
    assert sorted(distances.values())[1] > 1


def test_quantizer_has_its_levels_and_keeps_the_sign() -> None:
    x = np.linspace(-3, 3, 1001)
    for bits in (1, 2, 4):
        found = analysis.quantize_symmetric(x, bits)
        np.testing.assert_allclose(np.unique(found), np.linspace(-1, 1, 2**bits), atol=1e-12)
    assert (analysis.quantize_symmetric(np.array([-0.1, 0.0, 0.1]), 1) == [-1, 1, 1]).all()


def test_bi_attention_keeps_its_entropy_and_a_fixed_threshold_does_not() -> None:
    curves = {row["keys"]: row for row in analysis.entropy_curves()}
    assert all(row["sign(softmax)"] == 0 for row in curves.values())
    assert all(row["Bi-Attention"] > 0.99 for row in curves.values())
    assert curves[512]["softmax > 1/2"] == 0
    assert curves[128]["softmax > 2/128"] > 0.5 > 0.1 > curves[512]["softmax > 2/128"]
    assert all(0.5 < row["softmax > 2/keys"] < 0.6 for row in curves.values())


def test_tables_say_what_is_reproduced() -> None:
    rows = {(row["method"], row["column"]): row for row in analysis.table_figures()}
    missed = {key for key, row in rows.items() if not row["reproduced"]}
    assert missed == {
        ("BiBERT 6L", "size"),
        ("BiBERT 4L", "size"),
        ("BERT-base", "operations"),
        ("TinyBERT 6L", "operations"),
        ("TernaryBERT 2-2-1", "operations"),
        ("TernaryBERT 2-2-2", "operations"),
        ("TernaryBERT 2-2-8", "operations"),
    }
    assert rows["TinyBERT 6L", "size"]["value"] == pytest.approx(257.67, abs=0.005)
    assert rows["BinaryBERT", "size"]["value"] == pytest.approx(16.477, abs=0.0005)
    assert all(row["convention"] for row in rows.values())


def test_the_command_writes_numbers_and_a_plot(tmp_path: Path) -> None:
    path = tmp_path / "new" / "analysis.json"
    command = [sys.executable, "benchmarks/method_analysis.py", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(path.read_text())) == {
        "wrong_directions",
        "quantizer_distances",
        "attention_entropy",
        "tables",
    }
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
