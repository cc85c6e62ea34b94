"""results.json, results.md, results.png and the model card: what was measured, how, and what it is not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitbert.files import write_atomically, write_json_atomically, write_text_atomically

from .data import TaskData

NOT_GLUE = "\\*"
"""Marks scores that are not GLUE's in tables."""


def write_results(output: Path, summary: dict[str, Any], text: str) -> None:
    """``output``'s results.json, and results.md: what is to be read of it."""
    write_json_atomically(output / "results.json", summary)
    write_text_atomically(output / "results.md", text)


def results_markdown(summary: dict[str, Any]) -> str:
    """One table over all tasks, the averages, and how the weights were chosen."""
    tasks = _tasks(summary)
    first = tasks[0]
    num_seeds = len(first["seeds"])
    lines = [
        f"# Scores of `{summary['model']}`",
        "",
        "Scores times 100. "
        + (
            f"Mean ± sample standard deviation over {num_seeds} finetuning seeds ({', '.join(first['seeds'])})."
            if num_seeds > 1
            else f"One finetuning seed ({next(iter(first['seeds']))}), so there is no deviation."
        ),
        f"Weights: selection `{first['selection']}`, {first['selection_meaning']}.",
        "",
        "| task | set | metric | score | constant answer | seeds |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row['title']} | {row['set']} | {row['metric']} | {row['score']} | {row['majority']} | {row['seeds']} |"
        for row in _rows(tasks)
    ]
    found = summary.get("averages")
    if found is not None:
        lines += ["", *_average_lines(found)]
    caveats = [caveat for task in tasks for caveat in task["caveats"]]
    if caveats:
        lines += ["", f"{NOT_GLUE} Not a GLUE score: {'; '.join(caveats)}."]
    test_caveats = [caveat for task in tasks for caveat in task["test_caveats"]]
    if test_caveats:
        lines += ["", f"Answers that GLUE's server would not take: {'; '.join(test_caveats)}."]
    if "submission" in summary:
        missing = summary["submission"]["missing"]
        lines += ["", f"Answers to the test sets: {', '.join(f'`{file}`' for file in summary['submission']['files'])}."]
        if missing:
            lines += [f"GLUE's server takes whole submissions; these are missing: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def scores_text(summary: dict[str, Any]) -> str:
    """The same table for a terminal."""
    lines = [
        f"  {row['title'].replace(NOT_GLUE, '*'):8} {row['set']:15} {row['metric']:12} {row['score']:>14}   "
        f"constant answer {row['majority']}"
        for row in _rows(_tasks(summary))
    ]
    lines += [f"  {line}" for line in _average_lines(summary.get("averages") or {"missing": ""}) if line]
    lines += [f"  * not a GLUE score: {caveat}" for task in _tasks(summary) for caveat in task["caveats"]]
    return "\n".join(lines)


def plot_scores(summary: dict[str, Any], path: Path) -> None:
    """Every seed's score as a point, their mean as a bar, the constant answer as a line; one row a score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        (f"{task['title']} {metric}" + (f" ({name})" if len(task["mean"]) > 1 else ""), task, name, metric)
        for task in _tasks(summary)
        for name, values in task["mean"].items()
        for metric in values
    ]
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.35 * len(rows)), layout="constrained")
    for place, (_, task, name, metric) in enumerate(rows):
        axes.barh(place, 100 * task["mean"][name][metric], color="#b8cce0")
        points = [100 * scores[name][metric] for scores in task["seeds"].values()]
        axes.plot(points, [place] * len(points), "o", color="#1f4e79", markersize=4)
        constant = task["majority"][name].get(metric)
        if constant is not None:
            axes.plot([100 * constant] * 2, [place - 0.4, place + 0.4], color="#a33", linewidth=2)
    axes.set_yticks(range(len(rows)), [row[0] + (" *" if row[1]["caveats"] else "") for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        "score × 100\npoint: a seed; bar: their mean; line: constant answer; *: not a GLUE score", fontsize=8
    )
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    pyplot.close(figure)


def model_card(result: dict[str, Any], task: TaskData) -> str:
    """README.md of one finetuned model."""
    rows = "\n".join(
        f"| {name} | {metric} | {value:.4f} |"
        for name, values in result["scores"].items()
        for metric, value in values.items()
    )
    caveats = "".join(f"\nNot a GLUE score: {caveat}.\n" for caveat in task.caveats)
    kind, use = (
        ("A packed 1-bit task model", 'Ask it with `bitbert-predict THIS_FOLDER "text" ["second text"]`.')
        if result["packed"]
        else (
            "A task model with latent weights",
            f"Load it with `{task.head.model_class.__name__}.from_pretrained(THIS_FOLDER)`; the packed format does "
            "not know this kind of model.",
        )
    )
    selection = {
        "best_epoch": "the evaluation with the best score below, so the score is optimistic",
        "last_epoch": "the last",
        "train_split": "the best on rows held out of the training set",
    }[result["config"]["selection"]]
    return f"""# {kind}: {task.title}

Made by `bitbert-finetune` from `{result["model"]}`, seed {result["seed"]}, without a teacher.
Weights of epoch {result["epoch"]:.3g}: {selection}.

| evaluation set | metric | score |
| --- | --- | --- |
{rows}
{caveats}
{use}
"""


def _tasks(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return list(summary["tasks"].values()) if "tasks" in summary else [summary]


def _rows(tasks: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for task in tasks:
        for name, values in task["mean"].items():
            for metric, mean in values.items():
                deviation = task["standard_deviation"]
                constant = task["majority"][name].get(metric)
                yield {
                    "title": task["title"] + (NOT_GLUE if task["caveats"] else ""),
                    "set": name,
                    "metric": metric,
                    "score": f"{100 * mean:.2f}" + (f" ± {100 * deviation[name][metric]:.2f}" if deviation else ""),
                    "majority": "-" if constant is None else f"{100 * constant:.2f}",
                    "seeds": " ".join(f"{100 * scores[name][metric]:.2f}" for scores in task["seeds"].values()),
                }


def _average_lines(found: dict[str, Any]) -> list[str]:
    if "missing" in found:
        return [found["missing"]]
    deviation = found["standard_deviation"]
    texts = {
        "average_8_tasks": "Average of 8 tasks (MNLI once, as the mean of matched and mismatched)",
        "average_9_numbers": "Average of 9 numbers (MNLI matched and mismatched count each)",
    }
    return [
        f"{text}: {found['mean']['averages'][key]:.2f}"
        + (f" ± {deviation['averages'][key]:.2f}" if deviation else "")
        + "; accuracy, Matthews (CoLA), mean of Pearson and Spearman (STS-B); without WNLI."
        for key, text in texts.items()
    ]
