"""results.json and results.md of bitbert-method: each stage's scores over seeds, a line a stage, a column a task."""

from collections.abc import Iterable
from typing import Any

from .data import TaskData
from .report import NOT_GLUE
from .statistics import SELECTIONS, mean, mean_and_deviation, over_seeds, published_number


def summarize_stages(results: Iterable[dict[str, Any]], tasks: Iterable[TaskData]) -> dict[str, Any]:
    """Results of stages of one model, tasks and seeds mixed: ``{"model", "stages": {stage: {"tasks": {task: ...}}}}``.

    A task's values are those of bitbert-finetune's results.json that stages have as well: recipe, caveats, scores by
    seed, their mean and sample standard deviation.
    """
    by_name = {task.name: task for task in tasks}
    stages: dict[str, Any] = {}
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    model = ""
    for result in results:
        model = result["model"]
        grouped.setdefault((result["stage"], result["task"]), []).append(result)
    for (stage, name), found in grouped.items():
        config, task = found[0]["config"], by_name[name]
        stages.setdefault(stage, {"tasks": {}})["tasks"][name] = {
            "title": task.title,
            "caveats": task.caveats_of(config["max_train_rows"]),
            "data_sha256": found[0]["data_sha256"],
            "config": config,
            "selection": config["selection"],
            "not_packed": found[0]["not_packed"],
            "weights_bytes": found[0]["weights_bytes"],
            **over_seeds({result["seed"]: result["scores"] for result in found}),
        }
    return {"model": model, "stages": stages}


def task_scores(task: str, found: dict[str, Any]) -> list[float]:
    """A seed's score each, times 100: the published number, of MNLI the mean over both dev sets."""
    return [mean([published_number(task, values) for values in scores.values()]) for scores in found["seeds"].values()]


def stages_markdown(summary: dict[str, Any]) -> str:
    """The table; the mean over tasks only of stages that have them all."""
    stages = summary["stages"]
    tasks = {name: found for stage in stages.values() for name, found in stage["tasks"].items()}
    titles = [found["title"] + (NOT_GLUE if found["caveats"] else "") for found in tasks.values()]
    seeds = sorted(
        {int(seed) for stage in stages.values() for found in stage["tasks"].values() for seed in found["seeds"]}
    )
    lines = [
        f"# Scores of the stages from `{summary['model']}`",
        "",
        "Times 100, the metrics of the published tables: Matthews for CoLA, accuracy, the mean of Pearson and Spearman "
        f"for STS-B. Mean ± sample standard deviation over seeds ({', '.join(map(str, seeds))}).",
        "",
        f"| stage | MiB | {' | '.join(titles)} | mean |",
        f"| --- | ---: |{' ---: |' * len(tasks)} ---: |",
    ]
    for stage, values in stages.items():
        scores = {name: task_scores(name, found) for name, found in values["tasks"].items()}
        first = next(iter(values["tasks"].values()))
        whole = f"{mean([mean(found) for found in scores.values()]):.1f}" if len(scores) == len(tasks) else ""
        cells = [mean_and_deviation(scores.get(name, [])) for name in tasks]
        lines.append(f"| {stage} | {first['weights_bytes'] / 2**20:.1f} | {' | '.join(cells)} | {whole} |")
    lines.append("")
    selections = {found["selection"] for stage in stages.values() for found in stage["tasks"].values()}
    lines += [f"Selection `{name}`: {SELECTIONS[name]}." for name in sorted(selections)]
    caveats = {caveat: None for found in tasks.values() for caveat in found["caveats"]}
    if caveats:
        lines += ["", f"{NOT_GLUE} Not a GLUE score: {'; '.join(caveats)}."]
    return "\n".join(lines) + "\n"
