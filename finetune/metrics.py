"""GLUE's metrics on numpy arrays. Constant predictions give 0 where a correlation is undefined, as GLUE scores it."""

from collections.abc import Callable

import numpy as np


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal entries."""
    return float((predictions == labels).mean())


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1: 2 TP / (2 TP + FP + FN); 0 without a true positive."""
    true_positives = float(((predictions == 1) & (labels == 1)).sum())
    wrong = float((predictions != labels).sum())
    return 2 * true_positives / (2 * true_positives + wrong) if true_positives else 0.0


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation of two binary variables: Pearson's r of them."""
    return pearson(predictions.astype(float), labels.astype(float))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's r."""
    x, y = predictions.astype(np.float64), labels.astype(np.float64)
    if not np.ptp(x) or not np.ptp(y):  # exactly constant: what rounding leaves of x - mean(x) means nothing
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y) / float(np.sqrt((x @ x) * (y @ y)))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rho: Pearson's r of the ranks, ties sharing their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(float)
    return (last - (counts - 1) / 2)[inverse]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
