"""What counts as done: another method, other labels or other test files do not; another name of the same does."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bitbert.config import check_config
from bitbert.errors import UserError
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.data import TaskData
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.run import finetune, run_plan
from bitbert.finetune.sequence import SequenceHead
from bitbert.finetune.source import open_source
from bitbert.finetune.stage_run import run_stages
from bitbert.finetune.stages import MethodConfig
from bitbert.finetune.tasks import TASKS, find_tasks
from tests.conftest import tiny_model
from tests.finetune.conftest import write_rows, write_task

QUICK = FinetuneConfig(epochs=1, max_length=32, max_train_rows=16)


def run(model: Path, task: TaskData, output: Path, method: str | None = None, name: str = "m") -> dict[str, Any]:
    return finetune(open_source(str(model), method), task, QUICK, [0], output, model_name=name)


def renamed(task: TaskData) -> TaskData:
    return dataclasses.replace(task, head=SequenceHead(("no", "yes"), ("accuracy",)))


def test_another_method_is_another_result(pair_task: TaskData, tiny_teacher: Path, tmp_path: Path) -> None:
    run(tiny_teacher, pair_task, tmp_path, "baseline")
    # The weights are the same ones; what is binarized, and how, is not.
    with pytest.raises(UserError, match=r"another model_fields\.method \('baseline'\)"):
        run(tiny_teacher, pair_task, tmp_path, "bit")


def test_other_labels_and_another_tokenizer_are_other_results(
    pair_task: TaskData, saved_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved_model / "final", model)
    run(model, pair_task, tmp_path / "out")
    with pytest.raises(UserError, match=r"another labels \(\['different', 'same'\]\)"):
        run(model, renamed(pair_task), tmp_path / "out")
    data = json.loads((model / "tokenizer.json").read_text())
    data["normalizer"]["lowercase"] = False
    (model / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="another tokenizer_sha256"):
        run(model, pair_task, tmp_path / "out")


def test_a_name_decides_nothing_and_neither_does_what_was_not_recorded(
    pair_task: TaskData, saved_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(saved_model, pair_task, tmp_path, name="runs/pretrain")
    path = tmp_path / "seed-0" / "result.json"
    result = json.loads(path.read_text())
    for key in ("model_fields", "tokenizer_sha256", "head", "labels", "test_sha256"):
        del result[key]
    path.write_text(json.dumps(result))
    capsys.readouterr()
    run(saved_model, pair_task, tmp_path, name="runs/pretrain/")
    assert "already done" in capsys.readouterr().err
    path.write_text(json.dumps(result | {"config": result["config"] | {"epochs": 9}}))
    with pytest.raises(UserError, match=r"another config\.epochs \(9\)"):
        run(saved_model, pair_task, tmp_path)


def test_stages_know_labels_and_accept_earlier_results(pair_task: TaskData, packed_model: Path, tmp_path: Path) -> None:
    recipe = {"epochs": 1, "max_train_rows": 16, "max_length": 32}
    config = check_config(MethodConfig, {"stages": {"as-it-is": {"recipe": recipe}}}, "x")
    results = run_stages(config, str(packed_model), pair_task, 0, tmp_path)
    with pytest.raises(UserError, match="another labels"):
        run_stages(config, str(packed_model), renamed(pair_task), 0, tmp_path)
    path = tmp_path / "as-it-is" / "seed-0" / "result.json"
    for key in ("model_fields", "tokenizer_sha256", "head", "labels"):
        del results[0][key]
    path.write_text(json.dumps(results[0]))
    assert run_stages(config, f"{packed_model}/", pair_task, 0, tmp_path) == results


@pytest.mark.parametrize("method", ["bipft-b", "ternarybert"])  # a packed model, and one with latent weights
def test_test_files_that_come_later_are_answered_by_the_saved_model(
    method: str, tiny_tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glue, output = tmp_path / "glue", tmp_path / "out"
    write_task(glue, TASKS["mnli"])
    (glue / "AX" / "AX.tsv").unlink()
    tiny_model(method, vocab_size=tiny_tokenizer.vocab_size).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save(tmp_path / "model")
    source = open_source(str(tmp_path / "model"), None)

    def answers() -> dict[str, list[str]]:
        tasks = read_glue_tasks(find_tasks("mnli"), glue)
        finetune(source, tasks[0], QUICK, [0], output, model_name="m")
        return {path.stem: path.read_text().splitlines() for path in (output / "seed-0").glob("*.tsv")}

    first = answers()
    assert {name: len(lines) for name, lines in first.items()} == {"MNLI-m": 6, "MNLI-mm": 6}
    *_, matched, _, diagnostic = (*TASKS["mnli"].dev, *TASKS["mnli"].test)
    write_rows(glue / matched.files[0], TASKS["mnli"], 12, labelled=False)
    write_rows(glue / diagnostic.files[0], TASKS["mnli"], 5, labelled=False)
    capsys.readouterr()
    second = answers()
    printed = capsys.readouterr().err
    assert "already done" in printed
    assert "its saved model answers MNLI-m, AX" in printed
    assert {name: len(lines) for name, lines in second.items()} == {"MNLI-m": 13, "MNLI-mm": 6, "AX": 6}
    assert second["MNLI-m"][:6] == first["MNLI-m"]
    assert second["MNLI-mm"] == first["MNLI-mm"]
    answers()
    assert "its saved model answers" not in capsys.readouterr().err

    write_rows(glue / matched.files[0], TASKS["mnli"], 7, labelled=False)
    shutil.rmtree(output / "seed-0" / ("packed" if method == "bipft-b" else "model"))
    with pytest.raises(UserError, match=r"is gone, which MNLI-m of other test files needs"):
        answers()


def test_the_submission_has_the_new_answers(tmp_path: Path, packed_model: Path) -> None:
    glue, output = tmp_path / "glue", tmp_path / "out"
    source = open_source(str(packed_model), None)
    for name in ("rte", "wnli"):
        write_task(glue, TASKS[name])
    for num_rows in (5, 12):
        write_rows(glue / "RTE" / "test.tsv", TASKS["rte"], num_rows, labelled=False)
        tasks = read_glue_tasks(find_tasks("rte,wnli"), glue)
        run_plan(source, tasks, QUICK, [0], output, model_name="m")
        with zipfile.ZipFile(output / "submission-seed-0.zip") as archive:
            assert archive.read("RTE.tsv").count(b"\n") == num_rows + 1
