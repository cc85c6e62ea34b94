"""``pairs=bi_encoder``: which tasks it reaches, what it leaves behind, and what it does not go with."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from bitbert.errors import UserError
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.data import TaskData
from bitbert.finetune.full_precision import FullPrecisionClassifier
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.run import finetune, run_plan
from bitbert.finetune.source import open_source
from bitbert.finetune.stage_run import run_stages
from bitbert.finetune.stage_source import load_classifier
from bitbert.finetune.stages import MethodConfig, StageConfig
from bitbert.finetune.tasks import TASKS
from bitbert.packed import load_packed
from bitbert.runtime import Runtime
from tests.finetune.conftest import RECIPE
from tests.finetune.test_stages import method as quick_method

APART = RECIPE.model_copy(update={"pairs": "bi_encoder"})


def run(model: Path, task: TaskData, output: Path, recipe: FinetuneConfig = APART) -> dict:
    return finetune(open_source(str(model), None), task, recipe, [0], output, model_name="m")


def test_the_score_is_the_packed_models(pair_task: TaskData, packed_model: Path, tmp_path: Path) -> None:
    training_set = dataclasses.replace(pair_task, evaluation={"train": pair_task.train})
    recipe = APART.model_copy(update={"epochs": 20, "learning_rate": 3e-3, "dropout": 0.0})
    summary = run(packed_model, training_set, tmp_path, recipe)
    assert summary["config"]["pairs"] == "bi_encoder"
    score = summary["mean"]["train"]["accuracy"]
    assert score > 0.75
    runtime = Runtime.load(tmp_path / "seed-0" / "packed")
    assert runtime.config.head == "pair_classification"
    examples = pair_task.train
    found = runtime.classify(zip(examples.texts, examples.second_texts, strict=True))
    right = [answer.label == pair_task.head.labels[label] for answer, label in zip(found, examples.labels, strict=True)]
    assert np.mean(right) == pytest.approx(score, abs=1 / len(examples))


def test_it_reaches_pairs_only_and_one_task_may_differ(packed_model: Path, tiny_glue: Path, tmp_path: Path) -> None:
    tasks = read_glue_tasks([TASKS["sst2"], TASKS["stsb"], TASKS["mrpc"]], tiny_glue)
    recipe = FinetuneConfig(epochs=1, max_length=16, pairs="bi_encoder", tasks={"mrpc": {"pairs": "cross_encoder"}})
    source = open_source(str(packed_model), None)
    run_plan(source, tasks, recipe, [0], tmp_path, model_name="m")
    heads = {task: load_packed(tmp_path / task / "seed-0" / "packed").config.head for task in ("sst2", "stsb", "mrpc")}
    assert heads == {"sst2": "classification", "stsb": "pair_regression", "mrpc": "classification"}
    answers = (tmp_path / "stsb" / "seed-0" / "STS-B.tsv").read_bytes()

    # What it left answers test sets that come later, and starts another finetuning, which has a head of its own.
    result = tmp_path / "stsb" / "seed-0" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"answers": [], "test_sha256": {}}))
    (tmp_path / "stsb" / "seed-0" / "STS-B.tsv").unlink()
    run_plan(source, tasks, recipe, [0], tmp_path, model_name="m")
    assert (tmp_path / "stsb" / "seed-0" / "STS-B.tsv").read_bytes() == answers
    run(tmp_path / "stsb" / "seed-0" / "packed", tasks[2], tmp_path / "again", RECIPE)
    assert load_packed(tmp_path / "again" / "seed-0" / "packed").config.head == "classification"


def test_a_result_of_the_other_kind_is_not_mixed_in(pair_task: TaskData, packed_model: Path, tmp_path: Path) -> None:
    run(packed_model, pair_task, tmp_path, RECIPE)
    with pytest.raises(UserError, match="holds a result with another config"):
        run(packed_model, pair_task, tmp_path)


def test_a_stage_without_teacher_has_it_too(pair_task: TaskData, packed_model: Path, tmp_path: Path) -> None:
    method = MethodConfig(stages={"w1a1": StageConfig()}, recipe=APART)
    (result,) = run_stages(method, str(packed_model), pair_task, 0, tmp_path)
    assert result["not_packed"] is None
    assert load_packed(tmp_path / "w1a1" / "seed-0" / "packed").config.head == "pair_classification"


@pytest.mark.parametrize("method", ["bit", "bibert"])
def test_teachers_encode_texts_apart_too(method: str, tiny_teacher: Path, pair_task: TaskData, tmp_path: Path) -> None:
    config = quick_method(method)
    config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"pairs": "bi_encoder"})})
    *_, last = results = run_stages(config, str(tiny_teacher), pair_task, 0, tmp_path)
    assert last["not_packed"] is None
    teacher = load_classifier(tmp_path / results[0]["stage"] / "seed-0" / "model")
    assert isinstance(teacher, FullPrecisionClassifier)
    assert teacher.config.pairs == "bi_encoder"
    assert teacher.classifier.weight.shape[1] == 4 * teacher.config.hidden_size
    assert load_packed(tmp_path / last["stage"] / "seed-0" / "packed").config.head == "pair_classification"


def test_a_full_precision_model_of_pairs_is_ours_without_the_bits(tiny_teacher: Path) -> None:
    bert = BertModel.from_pretrained(tiny_teacher, dtype=torch.float32)
    fields = {"num_labels": 3, "pairs": "bi_encoder"}
    model = FullPrecisionClassifier(BertConfig(**{**bert.config.to_diff_dict(), **fields})).eval()
    model.bert.load_state_dict(bert.state_dict())
    ids = torch.tensor([[2, 10, 11, 3, 20, 3], [2, 12, 3, 21, 22, 3]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        found = model(input_ids=ids, token_type_ids=types, labels=torch.tensor([0, 2]))
        assert model(ids, torch.ones_like(ids), types).logits.equal(found.logits)  # HF's order of inputs
        means = [
            [bert(input_ids=torch.tensor([text])).last_hidden_state.mean(dim=1) for text in pair]
            for pair in ([[2, 10, 11, 3], [2, 20, 3]], [[2, 12, 3], [2, 21, 22, 3]])
        ]
        for row, pair in enumerate(means):
            u, v = (mean / mean.square().mean().sqrt() for mean in pair)
            expected = model.classifier(torch.cat([u, v, (u - v).abs(), u * v], dim=1))
            torch.testing.assert_close(found.logits[row : row + 1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, torch.tensor([0, 2])))


@pytest.mark.parametrize("recipe", [{"pairs": "bi_encoder"}, {"tasks": {"rte": {"pairs": "bi_encoder"}}}])
def test_a_teacher_of_the_other_kind_is_refused(recipe: dict) -> None:
    stages = {"first": {}, "second": {"teacher": "first", "recipe": recipe}}
    message = (
        "stage 'second': pairs bi_encoder with a teacher .stage 'first'. of pairs cross_encoder; give both the same"
    )
    with pytest.raises(ValueError, match=message):
        MethodConfig(stages=stages)
    MethodConfig(stages=stages, recipe=FinetuneConfig(**recipe))  # both have it then
