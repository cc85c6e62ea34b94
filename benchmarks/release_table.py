"""A released model's scores beside its references by the same recipe: the table of docs/results.md#the-release.

    python benchmarks/release_table.py OURS REFERENCES

OURS is results.json of bitbert-finetune for several tasks, REFERENCES that of bitbert-method with
configs/finetune/methods/quick_references.yaml for the same. Those of the release are
benchmarks/results/release-{glue,references}.json.
"""

import sys
from pathlib import Path
from typing import Any

from bitbert.errors import UserError
from bitbert.files import read_json
from bitbert.finetune.stage_report import task_scores
from bitbert.finetune.statistics import mean, mean_and_deviation, published_number

WHOLE, UNPRETRAINED = "full-precision", "unpretrained"
"""Stages: what a share is of, and what a gain is over."""


def table(ours: Path, references: Path) -> str:
    """Markdown: a line a model, a column a task, their average; below it share and gain of the first line.

    Raises:
        UserError: a reference lacks one of the model's tasks, or had other rows of it.
    """
    results = read_json(ours, "results")
    stages = read_json(references, "results of stages")["stages"]
    lines = {results["model"]: results["tasks"]} | {name: stage["tasks"] for name, stage in stages.items()}
    titles = {name: found["title"] for name, found in results["tasks"].items()}
    for line, tasks in lines.items():
        for name, title in titles.items():
            if name not in tasks:
                raise UserError(f"{line} has no scores of {title}; {references} needs the tasks of {ours}")
            if tasks[name]["data_sha256"] != results["tasks"][name]["data_sha256"]:
                raise UserError(f"{line} saw other rows of {title} than {results['model']}; give both one --glue-dir")
    scores = {line: {name: task_scores(name, tasks[name]) for name in titles} for line, tasks in lines.items()}
    scores["always the same answer"] = {name: _constant(name, found) for name, found in results["tasks"].items()}
    averages = {line: mean([mean(found) for found in tasks.values()]) for line, tasks in scores.items()}
    text = [f"| | {' | '.join(titles.values())} | average |", f"| --- |{' ---: |' * (len(titles) + 1)}"]
    for line, tasks in scores.items():
        text.append(f"| {line} | {' | '.join(map(mean_and_deviation, tasks.values()))} | {averages[line]:.1f} |")
    first = averages[results["model"]]
    text += [
        "",
        f"share of {WHOLE}: {100 * first / averages[WHOLE]:.0f} %; points above {UNPRETRAINED}: "
        f"{first - averages[UNPRETRAINED]:.1f}",
    ]
    return "\n".join(text)


def _constant(task: str, found: dict[str, Any]) -> list[float]:
    return [mean([published_number(task, values) for values in found["majority"].values()])]


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(table(*map(Path, sys.argv[1:])))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
