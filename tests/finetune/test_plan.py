"""bitbert-finetune --task all: plan, table, averages, submission, the hub's stub, and what the door refuses."""

import csv
import io
import json
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bitbert.errors import UserError
from bitbert.finetune import hub
from bitbert.finetune.__main__ import main
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.run import run_plan
from bitbert.finetune.source import open_source
from bitbert.finetune.statistics import averages
from bitbert.finetune.submission import FILES, write_answers
from bitbert.finetune.tasks import AVERAGED_TASKS, TASKS, GlueTask, find_tasks
from bitbert.packed import load_packed, save_packed
from tests.conftest import REPOSITORY, run_module
from tests.finetune.conftest import RECIPE

MAIN_FILES = {"results.json", "results.md", "results.png"}


def run_door(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["bitbert-finetune", *map(str, arguments)])
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise


def test_all_of_glue(
    tiny_glue: Path,
    packed_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    arguments = (packed_model, "--task", "all", "--seeds", "3", "--glue-dir", tiny_glue, "--output", output)
    recipe = ("epochs=1", "max_length=16")
    run_door(monkeypatch, *arguments, *recipe)
    printed = capsys.readouterr()
    assert "not a GLUE score: CoLA train has 16 rows" in printed.out
    results = json.loads((output / "results.json").read_text())
    assert list(results["tasks"]) == list(TASKS)
    mnli = results["tasks"]["mnli"]
    assert set(mnli["mean"]) == {"dev_matched", "dev_mismatched"}
    assert results["averages"]["missing"].startswith("no averages, because these are not GLUE's scores: CoLA,")
    assert {path.name for path in output.iterdir()} == {
        *MAIN_FILES,
        "submission-seed-3.zip",
        *TASKS,
    }
    assert (output / "results.png").read_bytes().startswith(b"\x89PNG")
    table = (output / "results.md").read_text()
    assert "One finetuning seed (3), so there is no deviation." in table
    assert "the score is optimistic" in table
    assert "| MNLI\\* | dev_mismatched | accuracy |" in table
    assert "server would not take: CoLA test has 5 rows" in table
    assert "CoLA test" not in printed.out

    with zipfile.ZipFile(output / "submission-seed-3.zip") as archive:
        assert archive.namelist() == [f"{name}.tsv" for name in FILES]
        answers = {
            name: list(csv.reader(io.StringIO(archive.read(f"{name}.tsv").decode()), delimiter="\t")) for name in FILES
        }
    for task in TASKS.values():
        for part in task.test:
            header, *rows = answers[part.submission]
            assert header == ["index", "prediction"]
            assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
            assert all(row[1] in task.labels if task.labels else 0 <= float(row[1]) <= 5 for row in rows)

    # Started again, nothing is trained, and the results are the same.
    before = {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")}
    run_door(monkeypatch, *arguments, *recipe)
    assert capsys.readouterr().err.count("already done") == 9
    assert {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")} == before
    assert json.loads((output / "results.json").read_text()) == results


def test_one_task_with_its_test_answers(
    tiny_glue: Path, packed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_door(
        *(monkeypatch, packed_model, "--task", "sst2", "--glue-dir", tiny_glue, "--output", tmp_path / "out"),
        *("--seeds", "0,1", "epochs=1", "max_length=16", f"tracking.mlflow_uri=sqlite:///{tmp_path}/mlflow.db"),
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["seeds"]) == {"0", "1"}
    assert results["mean"]["dev"]["accuracy"] == pytest.approx(
        np.mean([results["seeds"][seed]["dev"]["accuracy"] for seed in "01"])
    )
    assert results["standard_deviation"]["dev"]["accuracy"] is not None
    assert results["answers"]["1"] == {"SST-2": "seed-1/SST-2.tsv"}
    lines = (tmp_path / "out" / "seed-1" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert len(lines) == 6
    assert "2 finetuning seeds (0, 1)" in (tmp_path / "out" / "results.md").read_text()

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("bitbert-finetune")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"sst2-seed-0", "sst2-seed-1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    expected = results["seeds"]["1"]["dev"]["accuracy"]
    assert runs["sst2-seed-1"].data.metrics["selected.dev.accuracy"] == pytest.approx(expected)
    assert runs["sst2-seed-1"].data.params["config.epochs"] == "1"


def summary(task: GlueTask, scores: list[float]) -> dict[str, Any]:
    """A summary as a run leaves it, with one number a seed for every metric; mismatched is 0.1 below matched."""
    seeds = {
        str(seed): {part.name: dict.fromkeys(task.metrics, score - 0.1 * place) for place, part in enumerate(task.dev)}
        for seed, score in enumerate(scores)
    }
    return {"seeds": seeds, "caveats": []}


def test_both_averages() -> None:
    summaries = {name: summary(TASKS[name], [0.5, 0.7]) for name in AVERAGED_TASKS}
    summaries["cola"]["seeds"]["0"]["dev"]["matthews"] = 0.1
    summaries["stsb"]["seeds"]["0"]["dev"] = {"pearson": 0.2, "spearman": 0.4}
    summaries["mrpc"]["seeds"]["0"]["dev"]["f1"] = 0.9  # no part of the averages: the published number is accuracy
    found = averages(summaries)
    assert found["seeds"]["0"]["averages"] == {
        "average_8_tasks": pytest.approx((10 + 30 + 5 * 50 + 45) / 8),
        "average_9_numbers": pytest.approx((10 + 30 + 5 * 50 + 50 + 40) / 9),
    }
    assert found["seeds"]["1"]["averages"]["average_9_numbers"] == pytest.approx((8 * 70 + 60) / 9)
    assert found["standard_deviation"]["averages"]["average_8_tasks"] == pytest.approx(
        np.std([335 / 8, (7 * 70 + 65) / 8], ddof=1)
    )
    del summaries["rte"]
    assert averages(summaries) == {"missing": "no averages without RTE"}


def test_published_averages_are_reproduced() -> None:
    """BERT-base's row of the published tables: 83.8 over 8 tasks, 83.9 over 9 numbers."""
    row = {"qqp": 91.4, "qnli": 92.1, "sst2": 93.2, "cola": 59.7, "stsb": 90.1, "mrpc": 86.3, "rte": 72.2, "mnli": 84.9}
    summaries = {name: summary(TASKS[name], [row[name] / 100]) for name in AVERAGED_TASKS}
    summaries["mnli"]["seeds"]["0"]["dev_mismatched"]["accuracy"] = 0.855
    mean = averages(summaries)["mean"]["averages"]
    assert (round(mean["average_8_tasks"], 1), round(mean["average_9_numbers"], 1)) == (83.8, 83.9)


def test_scores_of_sts_b_stay_in_their_range(tmp_path: Path) -> None:
    write_answers(tmp_path / "STS-B.tsv", TASKS["stsb"], np.array([-0.5, 2.34567, 7.0]))
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"


def test_a_recipe_for_a_task_that_is_none(tiny_glue: Path, packed_model: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"tasks": {"sst3": RECIPE.tasks.get("x")}})
    with pytest.raises(UserError, match=r"tasks\.sst3, which is no task; did you mean 'sst2'"):
        run_plan(
            open_source(str(packed_model), None),
            read_glue_tasks(find_tasks("sst2"), tiny_glue),
            recipe,
            [0],
            tmp_path,
            model_name="m",
        )


def test_the_hub_gives_what_the_files_give(tiny_glue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from_files = {task.name: task for task in read_glue_tasks(find_tasks("all"), tiny_glue)}

    def load_dataset(repository: str, config: str) -> datasets.DatasetDict:
        assert repository == "nyu-mll/glue"
        task = from_files["mnli" if config == "ax" else config]
        parts = {part.split: task.evaluation.get(part.name, task.train) for part in (*task.glue.dev, task.glue.train)}
        parts |= {part.split: task.test[part.submission] for part in task.glue.test if ":" not in part.split}
        if config == "ax":
            parts = {"test": task.test["AX"]}
        columns = task.glue.hub_columns or task.glue.text_columns
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {
                        **dict(zip(columns, (examples.texts, examples.second_texts), strict=False)),
                        "label": [-1] * len(examples) if examples.labels is None else examples.labels.tolist(),
                    }
                )
                for split, examples in parts.items()
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for task in hub.fetch_glue_tasks(find_tasks("all")):
        expected = from_files[task.name]
        assert task.fingerprint == expected.fingerprint
        assert {name: part.texts for name, part in task.test.items()} == {
            name: part.texts for name, part in expected.test.items()
        }
        assert task.caveats == expected.caveats


def test_the_hub_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"\(no route\); pass --glue-dir"):
        hub.fetch_glue_tasks(find_tasks("rte"))
    rows = datasets.Dataset.from_dict({"sentence1": ["a"], "label": [0]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": rows}))
    with pytest.raises(UserError, match="rte train has no column 'sentence2'"):
        hub.fetch_glue_tasks(find_tasks("rte"))
    rows = rows.add_column("sentence2", ["b"])
    with pytest.raises(UserError, match="rte validation is not on the hub"):
        hub.fetch_glue_tasks(find_tasks("rte"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sst3", "--glue-dir", "."], "did you mean 'sst2'"),
        (["--train", "a.csv"], "give either --task"),
        (["--task", "rte", "--train", "a.csv", "--eval", "b.csv"], "give either --task"),
        (["--task", "sst2", "--glue-dir", ".", "epohcs=3"], "did you mean 'epochs'"),
        (["--task", "sst2", "--glue-dir", ".", "tasks.sst2.epohcs=3"], "did you mean 'epochs'"),
        (["--task", "sst2", "--glue-dir", ".", "tracking.mlflow_uri=runs"], "is a folder"),
        (["--task", "rte", "--glue-dir", "no/such/folder"], "has no RTE/"),
        (["--task", "rte", "--glue-dir", ".", "--seeds=a"], "--seeds 'a'"),
        (["--task", "rte", "--glue-dir", ".", "--seeds=1,1"], "--seeds '1,1'"),
        (["--task", "rte", "--glue-dir", ".", "--seeds=-1"], "--seeds '-1'"),
    ],
)
def test_door_refuses_before_any_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_door(monkeypatch, "model", *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_wrong_file_of_the_last_task_stops_the_plan_before_the_first(
    tiny_glue: Path, packed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "glue"
    for task in TASKS.values():
        (folder / task.title).parent.mkdir(exist_ok=True)
        (folder / task.title).symlink_to(tiny_glue / task.title)
    (folder / "WNLI").unlink()
    (folder / "WNLI").mkdir()
    (folder / "WNLI" / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t2\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        run_door(
            *(monkeypatch, packed_model, "--task", "all", "--glue-dir", folder, "--output", tmp_path / "out"),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("epochs=1", r"epochs=1 changes nothing for cola, whose epochs in the recipe is 50; give tasks.cola.epochs=1"),
        ("epochs=50", None),
        ("tasks.cola.epochs=1", None),
        ("learning_rate=1e-4", None),
    ],
)
def test_a_key_that_the_recipes_tasks_hide_is_refused(
    key: str,
    message: str | None,
    tiny_glue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("x", "--check", "--task", "cola", "--glue-dir", tiny_glue, key, "--config")
    recipe = REPOSITORY / "configs" / "finetune" / "bipft.yaml"
    with nullcontext() if message is None else pytest.raises(SystemExit):
        run_door(monkeypatch, *arguments, recipe)
    assert message is None or message in capsys.readouterr().err


def test_help_teaches() -> None:
    result = run_module("bitbert.finetune", "--help")
    assert "bitbert-finetune runs/pretrain --task all --seeds 0,1,2 --glue-dir glue" in " ".join(result.stdout.split())


def test_a_packed_model_may_bring_its_recipe(
    packed_model: Path,
    tiny_glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is the default; keys go on top of it, and a recipe that is named replaces it."""
    own, other, folder = "learning_rate: 0.003\nepochs: 1\n", tmp_path / "other.yaml", tmp_path / "model"
    save_packed(folder, load_packed(packed_model), "card", recipe=own)
    other.write_text("learning_rate: 0.004\n")
    task = ("--task", "rte", "--glue-dir", tiny_glue)

    def checked(*more: object) -> dict[str, Any]:
        run_door(monkeypatch, folder, *task, "--check", *more)
        recipe: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
        return recipe

    recipes = [checked(), checked("learning_rate=0.005"), checked("--config", other)]
    assert [(recipe["learning_rate"], recipe["epochs"]) for recipe in recipes] == [
        (0.003, 1),
        (0.005, 1),
        (0.004, None),
    ]
    run_door(monkeypatch, folder, *task, "--output", tmp_path / "out", "max_length=16")
    assert f"recipe {folder / 'finetune.yaml'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["config"]["learning_rate"] == 0.003

    (folder / "finetune.yaml").write_text(own.replace("3", "9"))
    with pytest.raises(SystemExit):
        run_door(monkeypatch, folder, *task, "--check")
    assert "finetune.yaml' was altered or cut off" in capsys.readouterr().err
