"""The full-precision parts between the bit products: LayerNorm, softmax, GELU. numpy only."""

import math

import numpy as np

_TAIL_END = 16.0
"""Beyond this Phi(-z) is below 1e-57, which is 0 in float32."""
_STEPS_PER_UNIT = 128
_GRID = np.linspace(0, _TAIL_END, int(_TAIL_END * _STEPS_PER_UNIT) + 1)
_MILLS = np.array([0.5 * math.erfc(z * math.sqrt(0.5)) * math.exp(z * z / 2) * math.sqrt(2 * math.pi) for z in _GRID])
_MILLS_SLOPE = (_GRID * _MILLS - 1) / _STEPS_PER_UNIT


def upper_tail(z: np.ndarray) -> np.ndarray:
    """Phi(-z) for z >= 0 in float64, relative error below 1e-9 in the whole tail.

    Phi(-z) = phi(z) M(z); the Mills ratio M is smooth (M' = z M - 1), so a table with cubic Hermite
    interpolation keeps the relative precision that 1 + erf loses.
    """
    scaled = np.minimum(z, _TAIL_END).astype(np.float64) * _STEPS_PER_UNIT
    index = np.minimum(scaled.astype(np.int64), len(_GRID) - 2)
    t = scaled - index
    rise = _MILLS[index + 1] - _MILLS[index]
    slope, next_slope = _MILLS_SLOPE[index], _MILLS_SLOPE[index + 1]
    mills = _MILLS[index] + t * (slope + t * (3 * rise - 2 * slope - next_slope + t * (slope + next_slope - 2 * rise)))
    return np.exp(-0.5 * np.square(z, dtype=np.float64)) / math.sqrt(2 * math.pi) * mills


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x), the exact form that BERT uses, with a tail that keeps its sign; in x's dtype."""
    tail = upper_tail(np.abs(x))
    return (x * np.where(x < 0, tail, 1 - tail)).astype(x.dtype)


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, 0)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, statistics in float64."""
    mean = x.mean(axis=-1, keepdims=True, dtype=np.float64)
    variance = np.square(x - mean).mean(axis=-1, keepdims=True)
    return ((x - mean) / np.sqrt(variance + eps)).astype(x.dtype) * weight + bias


ACTIVATIONS = {"gelu": gelu, "relu": relu}
