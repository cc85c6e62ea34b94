"""The table of a method's stages: means over seeds, and what is not a GLUE score."""

from pathlib import Path
from typing import Any

from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.stage_report import stages_markdown, summarize_stages
from bitbert.finetune.tasks import find_tasks


def result(stage: str, task: str, seed: int, **scores: dict[str, float]) -> dict[str, Any]:
    config = FinetuneConfig(epochs=1, selection="last_epoch", max_train_rows=4 if task == "mnli" else None)
    return {
        "model": "some/bert",
        "stage": stage,
        "task": task,
        "seed": seed,
        "scores": scores,
        "config": config.model_dump(mode="json"),
        "data_sha256": "0",
        "not_packed": None,
        "weights_bytes": 2**20 if stage == "student" else 5 * 2**20,
    }


def test_a_line_a_stage_and_a_column_a_task(tiny_glue: Path) -> None:
    tasks = read_glue_tasks(find_tasks("stsb,mnli"), tiny_glue)
    results = [
        result("teacher", "stsb", 0, dev={"pearson": 0.9, "spearman": 0.8}),
        result("student", "stsb", 0, dev={"pearson": 0.5, "spearman": 0.3}),
        result("student", "stsb", 1, dev={"pearson": 0.6, "spearman": 0.6}),
        result("student", "mnli", 0, dev_matched={"accuracy": 0.7}, dev_mismatched={"accuracy": 0.8}),
    ]
    summary = summarize_stages(results, tasks)
    assert summary["stages"]["student"]["tasks"]["stsb"]["mean"]["dev"]["pearson"] == 0.55
    text = stages_markdown(summary)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == [
        "| stage | MiB | STS-B\\* | MNLI\\* | mean |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| teacher | 5.0 | 85.0 |  |  |",  # not all tasks, hence no mean
        "| student | 1.0 | 50.0 ± 14.1 | 75.0 | 62.5 |",
    ]
    assert "`some/bert`" in text
    assert "over seeds (0, 1)" in text
    assert "MNLI was trained on the first 4 rows only" in text
    assert "Selection `last_epoch`: the weights after the last epoch are kept" in text
