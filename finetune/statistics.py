"""Scores over seeds, and GLUE's averages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .tasks import AVERAGED_TASKS, TASKS
from .train import Scores

SELECTIONS = {
    "best_epoch": "the evaluation with the best dev score is kept, as published: it was chosen on the rows it is "
    "scored on, so the score is optimistic",
    "last_epoch": "the weights after the last epoch are kept, whatever they score on dev",
    "train_split": "the evaluation with the best score on rows held out of the training set is kept: nothing was "
    "chosen on the dev set",
}


def over_seeds(scores: Mapping[int, Scores]) -> dict[str, Any]:
    """Scores by seed, their mean, and their sample standard deviation (n - 1 in the denominator; None for one seed)."""
    first = next(iter(scores.values()))

    def over(aggregate: Callable[[list[float]], float]) -> Scores:
        return {
            name: {metric: aggregate([score[name][metric] for score in scores.values()]) for metric in values}
            for name, values in first.items()
        }

    return {
        "seeds": {str(seed): score for seed, score in scores.items()},
        "mean": over(mean),
        "standard_deviation": over(deviation) if len(scores) > 1 else None,
    }


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return float(np.mean(values))


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; of at least two values."""
    return float(np.std(values, ddof=1))


def mean_and_deviation(values: Sequence[float]) -> str:
    """``mean ± deviation`` to one decimal, for tables: the mean alone for one value, nothing for none."""
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {deviation(values):.1f}" if len(values) > 1 else "")


def published_number(task: str, values: Mapping[str, float]) -> float:
    """What the published tables print for a task, times 100: for STS-B the mean of both correlations."""
    return 100 * mean([values[metric] for metric in TASKS[task].published])


def averages(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Both averages of the published tables, times 100, by seed and over seeds; or why there are none.

    average_8_tasks: mean over CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI and RTE, where MNLI is the mean of matched and
    mismatched (BiT's tables). average_9_numbers: both of MNLI's count (BiBERT's tables). WNLI is in neither.
    """
    missing = [TASKS[name].title for name in AVERAGED_TASKS if name not in summaries]
    if missing:
        return {"missing": f"no averages without {', '.join(missing)}"}
    others = [TASKS[name].title for name in AVERAGED_TASKS if summaries[name]["caveats"]]
    if others:
        return {"missing": f"no averages, because these are not GLUE's scores: {', '.join(others)}"}
    by_seed = {seed: _averages_of_seed(summaries, seed) for seed in summaries[AVERAGED_TASKS[0]]["seeds"]}
    return over_seeds({int(seed): {"averages": found} for seed, found in by_seed.items()})


def _averages_of_seed(summaries: Mapping[str, Mapping[str, Any]], seed: str) -> dict[str, float]:
    numbers = {
        name: [published_number(name, values) for values in summaries[name]["seeds"][seed].values()]
        for name in AVERAGED_TASKS
    }
    return {
        "average_8_tasks": mean([mean(values) for values in numbers.values()]),
        "average_9_numbers": mean([value for values in numbers.values() for value in values]),
    }
