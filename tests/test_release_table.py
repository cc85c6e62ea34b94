"""The release's table in the docs is what benchmarks/release_table.py makes of the committed records."""

import json
from pathlib import Path

import pytest

from benchmarks.release_table import table
from bitbert.config import load_config
from bitbert.errors import UserError
from bitbert.files import read_json
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.stages import MethodConfig
from bitbert.finetune.tasks import TASKS
from tests.conftest import REPOSITORY

OURS, REFERENCES = (REPOSITORY / "benchmarks/results" / f"release-{name}.json" for name in ("glue", "references"))


def test_the_docs_have_the_records_figures() -> None:
    *lines, _, summary = table(OURS, REFERENCES).splitlines()
    docs = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in docs
    assert summary in docs
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for line in lines[2:5]:  # ours and the references
        assert line.rsplit("|", 2)[1].strip() in readme  # the average


def test_figures(tmp_path: Path) -> None:
    def task(accuracy: float, seeds: int = 1) -> dict[str, object]:
        scores = {str(seed): {"dev": {"accuracy": accuracy + 0.1 * seed}} for seed in range(seeds)}
        return {"title": "RTE", "data_sha256": "a", "seeds": scores, "majority": {"dev": {"accuracy": 0.5}}}

    def written(name: str, values: dict[str, object]) -> Path:
        (tmp_path / name).write_text(json.dumps(values))
        return tmp_path / name

    ours = written("ours.json", {"model": "bitbert-x", "tasks": {"rte": task(0.5, seeds=3)}})
    stages = {"full-precision": {"tasks": {"rte": task(0.8)}}, "unpretrained": {"tasks": {"rte": task(0.55)}}}
    assert table(ours, written("references.json", {"stages": stages})).splitlines() == [
        "| | RTE | average |",
        "| --- | ---: | ---: |",
        "| bitbert-x | 60.0 ± 10.0 | 60.0 |",
        "| full-precision | 80.0 | 80.0 |",
        "| unpretrained | 55.0 | 55.0 |",
        "| always the same answer | 50.0 | 50.0 |",
        "",
        "share of full-precision: 75 %; points above unpretrained: 5.0",
    ]
    stages["unpretrained"]["tasks"] = {}
    with pytest.raises(UserError, match="unpretrained has no scores of RTE"):
        table(ours, written("references.json", {"stages": stages}))
    stages["unpretrained"]["tasks"] = {"rte": task(0.5) | {"data_sha256": "b"}}
    with pytest.raises(UserError, match="unpretrained saw other rows of RTE than bitbert-x"):
        table(ours, written("references.json", {"stages": stages}))


def test_the_references_recipe_is_the_releases() -> None:
    """Rates and full precision's way of pairs differ by intent, nothing else."""
    quick = load_config(FinetuneConfig, REPOSITORY / "configs/finetune/quick.yaml", [])
    references = load_config(MethodConfig, REPOSITORY / "configs/finetune/methods/quick_references.yaml", [])
    for task in TASKS.values():
        ours = quick.for_task(task.name, task.epochs)
        for stage in ("full-precision", "unpretrained"):
            found = references.recipe_of(stage).for_task(task.name, task.epochs)
            intended = {"learning_rate": found.learning_rate}
            if stage == "full-precision":
                intended["pairs"] = "cross_encoder"
            assert found == ours.model_copy(update=intended)


def test_the_references_saw_as_much_as_the_release() -> None:
    """In the records, too: the same rows, epochs, batches and length, and the same seeds."""
    ours, stages = read_json(OURS, "results")["tasks"], read_json(REFERENCES, "results of stages")["stages"]
    same = ("epochs", "batch_size", "max_length", "max_train_rows", "schedule", "precision", "selection")
    for stage in stages.values():
        for name, found in stage["tasks"].items():
            assert {key: found["config"][key] for key in same} == {key: ours[name]["config"][key] for key in same}
            assert found["seeds"].keys() == ours[name]["seeds"].keys()
