"""The analysis behind the published methods, computed again: python benchmarks/method_analysis.py --json PATH

1. How often a quantized activation points the wrong way at its teacher, for 1 to 8 bits (BiBERT's argument for
   comparing directions instead of values).
2. How much binarized attention can say, by how it is binarized and how many keys there are.
3. The size and operation columns of the tables, each beside the convention that gives it, or comes nearest.

PATH gets the numbers, PATH with .png the entropy curves. Everything is exact or from fixed seeds; takes seconds.
"""

import argparse
import math
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np

from bitbert.accounting import (
    Figure,
    Shape,
    operations_binary_with_elementwise,
    operations_elementwise,
    operations_full_precision,
    operations_low_bit,
    size_bibert_table,
    size_binarybert,
    size_bipft_table,
    size_full_precision,
    size_low_bit,
    size_tinybert,
)
from bitbert.files import write_atomically, write_json_atomically

PUBLISHED_WRONG_DIRECTIONS = (14.36, 6.42, 4.35, 3.30, 2.76, 2.56, 2.51, 2.49)
"""Percent, for 1 to 8 bits: BiBERT (arXiv 2203.06390)."""
KEYS = (4, 8, 16, 32, 64, 128, 256, 512)
_HEAD_SIZE, _QUERIES = 64, 256

SHAPES = {
    "base": Shape(),
    "6L": Shape(num_hidden_layers=6),
    "4L": Shape(num_hidden_layers=4, hidden_size=312, intermediate_size=1200),
}


def quantize_symmetric(x: np.ndarray, bits: int) -> np.ndarray:
    """2**bits levels evenly from -1 to 1, both included; the nearest one. One bit: the sign."""
    intervals = 2**bits - 1
    return np.floor((np.clip(x, -1, 1) + 1) / 2 * intervals + 0.5) / intervals * 2 - 1


def quantize_cells(x: np.ndarray, bits: int) -> np.ndarray:
    """Centres of 2**bits cells of equal width from -1 to 1; one bit: -1/2 and 1/2."""
    cells = 2**bits
    return (np.clip(np.floor((x + 1) / 2 * cells), 0, cells - 1) + 0.5) / cells * 2 - 1


def quantize_around_zero(x: np.ndarray, bits: int) -> np.ndarray:
    """2**bits - 1 levels from -1 to 1 with 0 among them; one bit: the sign."""
    if bits == 1:
        return quantize_symmetric(x, 1)
    highest = 2 ** (bits - 1) - 1
    return np.floor(np.clip(x, -1, 1) * highest + 0.5) / highest


QUANTIZERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "2^b levels, ends included": quantize_symmetric,
    "centres of 2^b cells": quantize_cells,
    "2^b - 1 levels around 0": quantize_around_zero,
}


def wrong_direction_share(
    bits: int, quantize: Callable[[np.ndarray, int], np.ndarray] = quantize_symmetric, num_points: int = 400_001
) -> float:
    """P(sign(x - t) differs from sign(quantize(x) - t)) for independent x, t ~ N(0, 1), by numerical integration.

    The directions differ where t lies between x and its quantized value.
    """
    x = np.linspace(-9, 9, num_points)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    return float((density * np.abs(_normal_cdf(x) - _normal_cdf(quantize(x, bits)))).sum())


def wrong_directions() -> list[dict[str, float]]:
    """One row for each of 1 to 8 bits: the published percentage and ours.

    ``sampling_deviations``: how many standard deviations of a sample of 10,000 pairs lie between the two.
    """
    rows = []
    for bits, published in enumerate(PUBLISHED_WRONG_DIRECTIONS, start=1):
        share = wrong_direction_share(bits)
        deviation = math.sqrt(share * (1 - share) / 10_000)
        rows.append(
            {
                "bits": bits,
                "published_percent": published,
                "percent": 100 * share,
                "sampling_deviations": (published / 100 - share) / deviation,
            }
        )
    return rows


def quantizer_distances() -> dict[str, float]:
    """Largest difference to the published percentages, by quantizer: which convention comes nearest."""
    return {
        name: max(
            abs(100 * wrong_direction_share(bits, quantize) - published)
            for bits, published in enumerate(PUBLISHED_WRONG_DIRECTIONS, start=1)
        )
        for name, quantize in QUANTIZERS.items()
    }


def attention_entropy(num_keys: int, seed: int = 0) -> dict[str, float]:
    """Entropy in bits of one binarized attention weight, by method, over random ±1 queries and keys of 64 columns.

    A weight that is 1 with probability p has entropy -p log2 p - (1 - p) log2 (1 - p); p is the share of ones.
    """
    random = np.random.default_rng(seed)
    queries, keys = (random.choice((-1.0, 1.0), (count, _HEAD_SIZE)) for count in (_QUERIES, num_keys))
    scores = queries @ keys.T / math.sqrt(_HEAD_SIZE)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    binarized = {
        "sign(softmax)": probabilities >= 0,
        "softmax > 1/2": probabilities > 0.5,
        "softmax > 2/128": probabilities > 2 / 128,  # right for 128 keys
        "softmax > 2/keys": probabilities > 2 / num_keys,  # the initial threshold of BiT and BiPFT
        "Bi-Attention": scores >= 0,
    }
    return {name: _entropy(float(bits.mean())) for name, bits in binarized.items()}


def entropy_curves() -> list[dict[str, Any]]:
    """One row a number of keys."""
    return [{"keys": num_keys, **attention_entropy(num_keys)} for num_keys in KEYS]


def table_figures() -> list[dict[str, Any]]:
    """One row a published figure: ours, its convention, and whether it gives the printed digits.

    Tables round, or cut, their last digit: either counts as reproduced.
    """
    base, six, four = SHAPES["base"], SHAPES["6L"], SHAPES["4L"]
    full, binary = size_full_precision(base), size_bibert_table(base)
    elementwise = operations_binary_with_elementwise(base, 128)
    rows: list[tuple[str, str, str, Figure]] = [
        ("BERT-base", "size", "418", full),
        ("TinyBERT 6L", "size", "257", size_tinybert(six)),
        ("TinyBERT 4L", "size", "55.6", size_tinybert(four)),
        ("Q-BERT 2-8-8", "size", "43.0", size_bibert_table(base, 2, 8)),
        ("TernaryBERT 2-2-8", "size", "28.0", size_low_bit(base, 2, 2)),
        ("BinaryBERT", "size", "16.5", size_binarybert(base)),
        ("BiBERT, BiT", "size", "13.4", binary),
        ("BiBERT 6L", "size", "6.8", size_bibert_table(six)),
        ("BiBERT 4L", "size", "4.4", size_bibert_table(four)),
        ("BiBERT", "times smaller", "31.2", _ratio(full, binary)),
        ("BiPFT", "times smaller", "28", _ratio(full, size_bipft_table(base))),
        ("BERT-base", "operations", "22.5", operations_full_precision(base, 128)),
        ("TinyBERT 6L", "operations", "11.3", operations_full_precision(six, 128)),
        ("TinyBERT 4L", "operations", "1.2", operations_full_precision(four, 128)),
        ("BiBERT, BiT", "operations", "0.4", elementwise),
        ("BiBERT 6L", "operations", "0.2", operations_binary_with_elementwise(six, 128)),
        ("BiBERT 4L", "operations", "0.03", operations_binary_with_elementwise(four, 128)),
        ("BinaryBERT 1-1-2", "operations", "0.8", _low_bit(base, 1, 2)),
        ("BinaryBERT 1-1-4", "operations", "1.5", _low_bit(base, 1, 4)),
        ("TernaryBERT 2-2-1", "operations", "0.8", _low_bit(base, 2, 1)),
        ("TernaryBERT 2-2-2", "operations", "1.5", _low_bit(base, 2, 2)),
        ("TernaryBERT 2-2-8", "operations", "6.4", _low_bit(base, 2, 8)),
        ("BiBERT", "times fewer", "56.3", _speed_up(Figure(0.4, "G", "the printed 22.5 / 0.4"))),
        ("BiBERT (README)", "times fewer", "59.2", _speed_up(Figure(0.38, "G", "the printed 22.5 / 0.38"))),
        ("BiPFT", "times fewer", "56", _speed_up(Figure(0.4, "G", "the printed 22.5 / 0.4"))),
    ]
    return [
        {
            "method": method,
            "column": column,
            "published": published,
            "value": figure.value,
            "unit": figure.unit,
            "convention": figure.convention,
            "reproduced": _prints_as(figure.value, published),
        }
        for method, column, published, figure in rows
    ]


def _ratio(full: Figure, other: Figure) -> Figure:
    return Figure(full.value / other.value, "", f"{full.convention} over: {other.convention}")


def _low_bit(shape: Shape, weight_bits: int, activation_bits: int) -> Figure:
    products, rest = operations_low_bit(shape, 128, weight_bits, activation_bits), operations_elementwise(shape, 128)
    return Figure(products.value + rest.value, "G", f"{products.convention}, plus {rest.convention}")


def _speed_up(operations: Figure) -> Figure:
    return Figure(22.5 / operations.value, "", operations.convention)


def _prints_as(value: float, printed: str) -> bool:
    digits, exact = Decimal(printed), Decimal(f"{value:.9f}")
    return digits in (exact.quantize(digits, ROUND_HALF_UP), exact.quantize(digits, ROUND_DOWN))


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)) / 2 + 0.5


def _entropy(share: float) -> float:
    return sum(p * math.log2(1 / p) for p in (share, 1 - share) if p > 0)


def plot(curves: list[dict[str, Any]], path: Path) -> None:
    """Entropy over the number of keys, one line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name in [name for name in curves[0] if name != "keys"]:
        axes.plot([row["keys"] for row in curves], [row[name] for row in curves], "o-", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("keys")
    axes.set_ylabel("entropy of a weight (bits)")
    axes.legend(fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the numbers; the plot is beside it")
    path = parser.parse_args().json
    results = {
        "wrong_directions": wrong_directions(),
        "quantizer_distances": quantizer_distances(),
        "attention_entropy": entropy_curves(),
        "tables": table_figures(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(path, results)
    plot(results["attention_entropy"], path.with_suffix(".png"))
    for row in results["wrong_directions"]:
        print(f"{row['bits']} bits: wrong {row['percent']:.2f} %, published {row['published_percent']:.2f} %")
    for name, distance in results["quantizer_distances"].items():
        print(f"largest difference with {name}: {distance:.2f} points")
    for row in results["attention_entropy"]:
        print("  ".join(f"{name} {value:.3f}" if name != "keys" else f"{value:4} keys" for name, value in row.items()))
    for row in results["tables"]:
        mark = "=" if row["reproduced"] else "nearest:"
        print(f"{row['method']:20} {row['column']:14} {row['published']:>5} {mark} {row['value']:.3f} {row['unit']}")


if __name__ == "__main__":
    main()
