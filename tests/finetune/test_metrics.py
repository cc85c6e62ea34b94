"""Metrics against scikit-learn and scipy; entity and answer scores against counts by hand."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from bitbert.finetune.metrics import METRICS
from bitbert.finetune.spans import answer_f1, best_span, exact_match, normalize_answer
from bitbert.finetune.tokens import entity_f1


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_the_libraries(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(0, 2, 50), random.integers(0, 2, 50)
    assert METRICS["accuracy"](predictions, labels) == pytest.approx(
        sklearn.metrics.accuracy_score(labels, predictions)
    )
    assert METRICS["f1"](predictions, labels) == pytest.approx(sklearn.metrics.f1_score(labels, predictions))
    assert METRICS["matthews"](predictions, labels) == pytest.approx(
        sklearn.metrics.matthews_corrcoef(labels, predictions)
    )
    scores, truth = random.integers(0, 9, 50) / 2, random.normal(size=50)  # with ties
    assert METRICS["pearson"](scores, truth) == pytest.approx(scipy.stats.pearsonr(scores, truth).statistic)
    assert METRICS["spearman"](scores, truth) == pytest.approx(scipy.stats.spearmanr(scores, truth).statistic)


def test_constant_predictions_score_zero() -> None:
    labels, constant = np.array([0, 1, 1]), np.zeros(3, int)
    assert [METRICS[name](constant, labels) for name in ("matthews", "pearson", "spearman", "f1")] == [0, 0, 0, 0]
    scores = np.random.default_rng(0).random(1501, np.float32)
    assert METRICS["pearson"](np.full_like(scores, 2.7001), scores) == 0  # whose mean is not 2.7001 in float32


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        ("B-a I-a O B-b", "B-a I-a O B-b", 1.0),
        ("B-a O O B-b", "B-a I-a O B-b", 0.5),  # one entity cut short
        ("B-a B-a O O", "B-a I-a O O", 0.0),  # two entities where there is one
        ("O I-a I-a O", "O B-a I-a O", 1.0),  # the older scheme, in which I begins an entity too
        ("B-a I-b O O", "B-a O O O", 2 / 3),  # I of another class begins one
        ("O O O O", "O O O O", 0.0),
    ],
)
def test_entity_f1(found: str, wanted: str, score: float) -> None:
    assert entity_f1([found.split()], [wanted.split()]) == pytest.approx(score)


def test_answers_are_compared_as_squad_does() -> None:
    assert normalize_answer("The  Old-King, a ruler.") == ["oldking", "ruler"]
    assert exact_match("the king", "King.") == 1
    assert exact_match("the kings", "King.") == 0
    assert answer_f1("the old king of France", "king of Spain") == pytest.approx(2 * 2 / (4 + 3))
    assert (answer_f1("", "king"), answer_f1("the", "a")) == (0, 1)


def test_best_span_ends_after_it_starts_and_is_not_too_long() -> None:
    start, end = np.zeros(50), np.zeros(50)
    start[40], end[2], end[45] = 5, 9, 3
    assert best_span(start, end) == (9.0, 0, 2)
    start[40] = 8
    assert best_span(start, end) == (11.0, 40, 45)
    start[1] = 10
    assert best_span(start, end) == (19.0, 1, 2)
    end[2] = 0
    assert best_span(start, end) == (11.0, 40, 45)  # 1 to 45 would be 13.0 and 45 tokens
    assert best_span(np.empty(0), np.empty(0)) is None
