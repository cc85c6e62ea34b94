"""What people read of compare_methods.py: a table of means and deviations over seeds, and a plot of every seed."""

from pathlib import Path
from typing import Any

import numpy as np
from compare_plan import ALL

from bitbert.files import write_atomically
from bitbert.finetune.statistics import mean_and_deviation


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a method, a column a task: mean score x 100 +- sample standard deviation over seeds.

    A method whose texts were also encoded apart has a second line; tasks of single texts are the same in both. The
    average over tasks is given to lines that have all of them; the share is of the full-precision average.
    """
    tasks = sorted({row["task"] for row in rows})
    whole = average([row for row in rows if row["method"] == ALL[0]], tasks)
    lines = [
        "| method | pretraining tokens | MiB | learning rate | " + " | ".join(tasks) + " | average | share |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * (len(tasks) + 2),
    ]
    for name, found in lines_of(rows).items():
        first = found[0]
        size = (first["packed_bytes"] or first["float_bytes"]) / 2**20
        mean = average(found, tasks)
        tokens = "unknown" if first["pretraining_tokens"] is None else f"{first['pretraining_tokens']:,}"
        cells = [name, tokens, f"{size:.1f}", f"{first['learning_rate']:g}"]
        cells += [mean_and_deviation([100 * row["score"] for row in found if row["task"] == task]) for task in tasks]
        cells.append("" if mean is None else f"{100 * mean:.1f}")
        cells.append("" if mean is None or not whole else f"{100 * mean / whole:.0f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def lines_of(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each line by its name, in the order of the table."""
    found: dict[str, list[dict[str, Any]]] = {}
    for method in ALL:
        of_method = [row for row in rows if row["method"] == method]
        apart = [row for row in of_method if row["apart"]]
        together = [row for row in of_method if not row["apart"]]
        pairs = {row["task"] for row in apart}
        if together:
            found[method] = together
        if apart:
            found[f"{method}, apart"] = [row for row in together if row["task"] not in pairs] + apart
    return found


def average(rows: list[dict[str, Any]], tasks: list[str]) -> float | None:
    """Mean over ``tasks`` of the mean over seeds; None where a task is missing."""
    scores = [[row["score"] for row in rows if row["task"] == task] for task in tasks]
    return float(np.mean([np.mean(found) for found in scores])) if all(scores) and scores else None


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A group of bars a task, one a method: the mean over seeds, and each seed as a point; behind it, wider and pale,
    what comes of texts encoded apart.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = sorted({row["task"] for row in rows})
    methods = [method for method in ALL if any(row["method"] == method for row in rows)]
    space = 0.8 / len(methods)
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.9 * len(tasks), 3.5), layout="constrained")
    for place, method in enumerate(methods):
        centers = np.arange(len(tasks)) + (place - (len(methods) - 1) / 2) * space
        for apart in (True, False):
            found = [row for row in rows if row["method"] == method and row["apart"] == apart]
            scores = [[100 * row["score"] for row in found if row["task"] == task] for task in tasks]
            axes.bar(
                centers,
                [np.mean(of_task) if of_task else 0 for of_task in scores],
                space * (0.95 if apart else 0.6),
                color=f"C{place}",
                alpha=0.35 if apart else 1,
                label=None if apart else method,
            )
            for center, of_task in zip(centers, scores, strict=True):
                axes.plot([center] * len(of_task), of_task, "k.", markersize=2 if apart else 3)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("score on dev x 100")
    if any(row["apart"] for row in rows):
        axes.set_title("pale: the texts of pairs encoded apart", fontsize=8)
    axes.legend(fontsize=7, ncols=2)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    pyplot.close(figure)
