"""Methods from start to end on a tiny task: teachers, chains of bits, splitting, what is saved, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from bitbert.config import check_config, load_config
from bitbert.errors import UserError
from bitbert.finetune.data import TaskData
from bitbert.finetune.method import main
from bitbert.finetune.source import open_source
from bitbert.finetune.stage_run import run_stages
from bitbert.finetune.stage_source import load_classifier, open_stage
from bitbert.finetune.stages import MethodConfig, StageConfig
from bitbert.model.splitting import split_ternary
from bitbert.runtime import Runtime
from tests.conftest import REPOSITORY

METHODS = REPOSITORY / "configs" / "finetune" / "methods"
QUICK = ["recipe={epochs: 1, batch_size: 16, max_length: 32, learning_rate: 1.0e-3, max_train_rows: 32}"]


def method(name: str, *overrides: str) -> MethodConfig:
    """A shipped recipe whose stages all train for two steps."""
    found = load_config(MethodConfig, METHODS / f"{name}.yaml", [*QUICK, *overrides])
    return load_config(
        MethodConfig,
        METHODS / f"{name}.yaml",
        [*QUICK, *(f"stages.{stage}.recipe=null" for stage in found.stages), *overrides],
    )


def run(name: str, teacher: Path, task: TaskData, output: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    results = run_stages(method(name, *overrides), str(teacher), task, 0, output)
    return {result["stage"]: result for result in results}


def test_bits_chain_from_full_precision_to_1(tiny_teacher: Path, pair_task: TaskData, tmp_path: Path) -> None:
    results = run("bit", tiny_teacher, pair_task, tmp_path)
    assert list(results) == ["teacher", "w1a2", "w1a1"]
    assert results["teacher"]["not_packed"] == "full precision"
    assert results["w1a2"]["not_packed"] == "its activations have 2 bits"
    assert results["w1a1"]["not_packed"] is None
    assert results["w1a1"]["max_abs_difference"] < 1e-4
    folders = {name: tmp_path / name / "seed-0" for name in results}
    assert isinstance(load_classifier(folders["teacher"] / "model"), BertForSequenceClassification)
    first, second = (load_classifier(folders[name] / "model") for name in ("w1a2", "w1a1"))
    assert (first.config.activation_bits, second.config.activation_bits) == (2, 1)
    assert Runtime.load(folders["w1a1"] / "packed").config.method == "bit"
    assert results["w1a1"]["weights_bytes"] * 3 < results["w1a2"]["weights_bytes"]
    assert results["w1a1"]["after"] == {"w1a2": results["w1a2"]["weights_sha256"]}

    written = [(folders[name] / "result.json").stat().st_mtime_ns for name in results]
    assert run("bit", tiny_teacher, pair_task, tmp_path) == results
    assert [(folders[name] / "result.json").stat().st_mtime_ns for name in results] == written
    with pytest.raises(UserError, match="holds a result with another config"):
        run("bit", tiny_teacher, pair_task, tmp_path, "recipe.epochs=2")


def test_a_stage_starts_from_a_released_name(
    packed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbert.released.FOLDER", tmp_path)
    shutil.copytree(packed_model, tmp_path / "bitbert-tiny")
    found = open_stage("as-it-is", StageConfig(), "bitbert-tiny")
    assert found.fingerprint == open_source(str(packed_model), None).fingerprint


def test_another_start_under_the_same_name_is_refused(
    saved_model: Path, packed_model: Path, pair_task: TaskData, tmp_path: Path
) -> None:
    recipe = {"epochs": 1, "max_train_rows": 16, "max_length": 32}
    config = check_config(MethodConfig, {"stages": {"as-it-is": {"recipe": recipe}}}, "x")
    model = tmp_path / "model"
    shutil.copytree(packed_model, model)
    (result,) = run_stages(config, str(model), pair_task, 0, tmp_path / "out")
    assert result["start_sha256"] == open_source(str(packed_model), None).fingerprint
    shutil.rmtree(model)
    shutil.copytree(saved_model / "final", model)
    with pytest.raises(UserError, match="holds a result with another start_sha256"):
        run_stages(config, str(model), pair_task, 0, tmp_path / "out")


def test_the_student_starts_with_its_teachers_weights_and_head(
    tiny_teacher: Path, pair_task: TaskData, tmp_path: Path
) -> None:
    run("bit", tiny_teacher, pair_task, tmp_path)
    saved = tmp_path / "teacher" / "seed-0" / "model"
    teacher = load_classifier(saved)
    model = open_stage("w1a2", StageConfig(method="bit", fields={"activation_bits": 2}), str(saved)).build(
        pair_task.head, 5
    )
    assert torch.equal(model.classifier.weight, teacher.classifier.weight)
    assert torch.equal(model.bitbert.layers[0].output.weight, teacher.bert.encoder.layer[0].output.dense.weight)
    two_bits = tmp_path / "w1a2" / "seed-0" / "model"
    one_bit = open_stage("w1a1", StageConfig(fields={"activation_bits": 1}), str(two_bits)).build(pair_task.head, 5)
    start = load_classifier(two_bits)
    assert torch.equal(one_bit.classifier.weight, start.classifier.weight)
    unsigned = "bitbert.layers.0.output.input_binarizer.alpha"
    ratio = one_bit.get_parameter(unsigned) / start.get_parameter(unsigned)
    assert ratio.item() == pytest.approx(3**0.5)


def test_bibert_learns_from_directions(tiny_teacher: Path, pair_task: TaskData, tmp_path: Path) -> None:
    results = run("bibert", tiny_teacher, pair_task, tmp_path)
    assert results["w1a1"]["not_packed"] is None
    packed = Runtime.load(tmp_path / "w1a1" / "seed-0" / "packed")
    assert (packed.config.attention, packed.config.method) == ("bi", "bibert")


def test_ternary_weights_are_split_and_trained_on(tiny_teacher: Path, pair_task: TaskData, tmp_path: Path) -> None:
    results = run("binarybert", tiny_teacher, pair_task, tmp_path)
    assert results["ternary"]["not_packed"] == "its activations have 4 bits"
    ternary = load_classifier(tmp_path / "ternary" / "seed-0" / "model")
    assert ternary.config.num_attention_heads == 2
    split = open_stage("split", StageConfig(method="binarybert"), str(tmp_path / "ternary" / "seed-0" / "model"))
    expected = split_ternary(ternary)
    built = split.build(pair_task.head, 0)
    assert all(torch.equal(built.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    trained = load_classifier(tmp_path / "split" / "seed-0" / "model")
    assert trained.config.split_weights
    assert not torch.equal(trained.bitbert.layers[0].output.split_weight, built.bitbert.layers[0].output.split_weight)


@pytest.mark.parametrize("name", ["ternarybert", "baseline", "full_precision", "bit_single"])
def test_the_other_methods_run(name: str, tiny_teacher: Path, pair_task: TaskData, tmp_path: Path) -> None:
    results = run(name, tiny_teacher, pair_task, tmp_path)
    final = list(results.values())[-1]
    assert (final["not_packed"] is None) == (name in ("baseline", "bit_single"))
    assert 0 <= final["scores"]["eval"]["accuracy"] <= 1


def test_a_pretrained_model_can_start_a_method(saved_model: Path, pair_task: TaskData, tmp_path: Path) -> None:
    config = MethodConfig(stages={"w1a1": StageConfig()}, recipe=method("baseline").recipe)
    (result,) = run_stages(config, str(saved_model), pair_task, 0, tmp_path)
    assert result["not_packed"] is None


def test_what_does_not_go_together_is_refused(
    tiny_teacher: Path, saved_model: Path, pair_task: TaskData, tmp_path: Path
) -> None:
    def opened(start: Path, **fields: Any) -> None:
        open_stage("s", StageConfig(**fields), str(start))

    with pytest.raises(UserError, match="method 'bit' is for full-precision models"):
        opened(saved_model, method="bit")
    with pytest.raises(UserError, match="is a full-precision BERT; name a method for it"):
        opened(tiny_teacher)
    with pytest.raises(UserError, match="hidden_act of a binary model cannot change"):
        opened(saved_model, fields={"hidden_act": "relu"})
    with pytest.raises(UserError, match="full precision has neither fields nor half width"):
        opened(tiny_teacher, method="full-precision", half_width=True)
    with pytest.raises(UserError, match="stage 's', fields: "):
        opened(tiny_teacher, method="bit", fields={"activation_bits": 3})
    for unknown in ("activation_bit", "method"):
        with pytest.raises(UserError, match=f"stage 's', fields: unknown {unknown}; known: activation_bits, "):
            opened(tiny_teacher, method="bit", fields={unknown: 2})
    with pytest.raises(UserError, match=r"stage 's', fields\.hidden_size is 2, the teacher's is 32; "):
        opened(tiny_teacher, method="bit", fields={"hidden_size": 2})
    with pytest.raises(UserError, match="weights are mean_centered, wanted ternary"):
        opened(saved_model, method="binarybert")  # a run, whose model lies in final/
    with pytest.raises(UserError, match="splitting keeps the function; give fields and half_width"):
        opened(saved_model, method="binarybert", half_width=True)
    with pytest.raises(UserError, match="max_length 64 is above the model's 48 positions"):
        run("baseline", tiny_teacher, pair_task, tmp_path, "recipe.max_length=64")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("{a: {start: b}}", "start 'b' is not known; there are: model"),
        ("{a: {teacher: a}}", "teacher 'a' is not known; there are: none"),
        ("{a: {method: bert}}", "method 'bert' is not known"),
        ("{model: {}}", "wanted a name"),
    ],
)
def test_stages_name_earlier_ones(stages: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(MethodConfig, METHODS / "baseline.yaml", [f"stages={stages}"])


@pytest.mark.parametrize("key", ["recipe.learning_rate", "stages.w1a1.recipe.epochs"])
def test_keys_that_the_recipes_tasks_hide_are_refused(
    key: str, tiny_glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = ["stages.w1a1.recipe={tasks: {stsb: {epochs: 2}}}"] if key.startswith("stages.") else []
    options = ["--config", METHODS / "bit.yaml", "--task", "stsb", "--glue-dir", tiny_glue, "--output", tmp_path]
    monkeypatch.setattr("sys.argv", ["bitbert-method", "model", *map(str, options), *hidden, f"{key}=1"])
    with pytest.raises(SystemExit):
        main()
    assert f"{key}=1" in (error := capsys.readouterr().err)
    assert "changes nothing for stsb" in error


def test_the_command_runs_a_method_on_glue(
    tiny_teacher: Path,
    tiny_glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--config", METHODS / "full_precision.yaml", "--task", "stsb", "--glue-dir", tiny_glue)
    recipe = (tiny_teacher, "recipe.epochs=1", "recipe.max_length=32", "--output", tmp_path)
    monkeypatch.setattr("sys.argv", ["bitbert-method", *map(str, (*recipe, *arguments))])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "STS-B seed 0 teacher" in capsys.readouterr().out
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["stages"]["teacher"]["tasks"]["stsb"]["config"]["epochs"] == 1
    assert "| stage | MiB | STS-B\\* | mean |" in (tmp_path / "results.md").read_text()
    result = json.loads((tmp_path / "stsb" / "teacher" / "seed-0" / "result.json").read_text())
    assert set(result["scores"]["dev"]) == {"pearson", "spearman"}
