"""Finetuning from every kind of source, in this process, on tiny tasks."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from bitbert.errors import UserError
from bitbert.finetune import train
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.data import TaskData
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.own_data import read_own_task
from bitbert.finetune.run import finetune
from bitbert.finetune.source import open_source
from bitbert.finetune.tasks import TASKS
from bitbert.finetune.train import encode_task
from bitbert.model import BitBertForPreTraining, BitBertForQuestionAnswering, BitBertForTokenClassification
from bitbert.model.export import pack_model
from bitbert.packed import load_packed, save_packed
from bitbert.runtime import Runtime
from bitbert.tokenizer import load_tokenizer
from bitbert.tracking import read_status
from tests.conftest import BERT_DAMAGE, tiny_model
from tests.finetune.conftest import RECIPE
from tests.finetune.test_own_data import QUESTION, write


def run(model: Path, task: TaskData, output: Path, seeds: list[int] | None = None, /, **changes: Any) -> dict[str, Any]:
    recipe = RECIPE.model_copy(update=changes)
    return finetune(open_source(str(model), None), task, recipe, seeds or [0], output, model_name="m")


def classifier(output: Path) -> np.ndarray:
    return load_packed(output / "seed-0" / "packed").tensors["classifier.weight"]


def test_from_a_run_to_a_packed_task_model(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    summary = run(saved_model, pair_task, tmp_path, [0, 1])
    assert set(summary["seeds"]) == {"0", "1"}
    values = [summary["seeds"][seed]["eval"]["accuracy"] for seed in ("0", "1")]
    assert summary["mean"]["eval"]["accuracy"] == pytest.approx(np.mean(values))
    assert summary["standard_deviation"]["eval"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert summary["majority"] == {"eval": {"accuracy": 0.5}}

    runtime = Runtime.load(tmp_path / "seed-0" / "packed")
    assert runtime.config.labels == ["different", "same"]
    examples = pair_task.evaluation["eval"]
    predictions = runtime.classify(list(zip(examples.texts, examples.second_texts, strict=True)))
    labels = [pair_task.head.labels[number] for number in examples.labels]
    right = [found.label == label for found, label in zip(predictions, labels, strict=True)]
    assert np.mean(right) == pytest.approx(values[0], abs=1 / len(examples))  # the score is the packed model's


def test_it_learns_its_training_set(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    training_set = dataclasses.replace(pair_task, evaluation={"train": pair_task.train})
    summary = run(saved_model, training_set, tmp_path, epochs=20, learning_rate=3e-3)
    assert summary["mean"]["train"]["accuracy"] > 0.75


def test_finished_seeds_are_skipped_and_others_refused(
    pair_task: TaskData, saved_model: Path, packed_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(saved_model, pair_task, tmp_path, [3])
    marker = (tmp_path / "seed-3" / "packed" / "model.safetensors").stat().st_mtime_ns
    assert run(saved_model, pair_task, tmp_path, [3]) == first
    assert (tmp_path / "seed-3" / "packed" / "model.safetensors").stat().st_mtime_ns == marker
    assert "seed 3: already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a result with another config"):
        run(saved_model, pair_task, tmp_path, [3], epochs=3)
    with pytest.raises(UserError, match="another weights_sha256"):
        run(packed_model, pair_task, tmp_path, [3])
    with pytest.raises(UserError, match="another data_sha256"):
        run(saved_model, dataclasses.replace(pair_task, train=pair_task.train.take(np.arange(9))), tmp_path, [3])


def test_a_seed_that_was_cut_off_starts_again(
    pair_task: TaskData, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupted(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "clip_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(saved_model, pair_task, tmp_path / "cut")
    monkeypatch.undo()
    assert read_status(tmp_path / "cut" / "seed-0") == "KILLED"
    assert not (tmp_path / "cut" / "seed-0" / "result.json").exists()
    assert run(saved_model, pair_task, tmp_path / "cut") == run(saved_model, pair_task, tmp_path / "whole")
    lines = [(tmp_path / name / "seed-0" / "metrics.jsonl").read_text().count("\n") for name in ("cut", "whole")]
    assert lines[0] == lines[1]


def test_same_seed_same_bits(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(saved_model, pair_task, tmp_path / name)
    tensors = [load_packed(tmp_path / name / "seed-0" / "packed").tensors for name in ("a", "b")]
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_bf16_learns_too_and_is_scored_in_fp32(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    training_set = dataclasses.replace(pair_task, evaluation={"train": pair_task.train})
    summary = run(saved_model, training_set, tmp_path / "bf16", epochs=20, learning_rate=3e-3, precision="bf16")
    assert summary["mean"]["train"]["accuracy"] > 0.75
    run(saved_model, training_set, tmp_path / "fp32", epochs=20, learning_rate=3e-3)
    assert not np.array_equal(classifier(tmp_path / "bf16"), classifier(tmp_path / "fp32"))


@pytest.mark.parametrize(("selection", "pick"), [("best_epoch", max), ("last_epoch", lambda scores: scores[-1])])
def test_selection_is_what_it_says(
    pair_task: TaskData, saved_model: Path, tmp_path: Path, selection: str, pick: Callable[[list[float]], float]
) -> None:
    summary = run(saved_model, pair_task, tmp_path, selection=selection, epochs=4, learning_rate=5e-3)
    history = json.loads((tmp_path / "seed-0" / "result.json").read_text())["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert summary["mean"]["eval"]["accuracy"] == pick([entry["scores"]["eval"]["accuracy"] for entry in history])
    assert summary["selection"] == selection
    assert ("optimistic" in summary["selection_meaning"]) == (selection == "best_epoch")


def test_a_split_of_the_training_set_selects(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"selection": "train_split", "selection_fraction": 0.25})
    encoded = encode_task(pair_task, open_source(str(saved_model), None), recipe)
    held_out, kept = encoded.evaluation["selection"].examples, encoded.train.examples
    pairs = [set(zip(part.texts, part.second_texts, strict=True)) for part in (held_out, kept)]
    assert (len(held_out), len(kept)) == (16, 48)
    assert not pairs[0] & pairs[1]
    summary = run(
        saved_model,
        pair_task,
        tmp_path,
        selection="train_split",
        selection_fraction=0.25,
        epochs=4,
        learning_rate=5e-3,
    )
    result = json.loads((tmp_path / "seed-0" / "result.json").read_text())
    scores = [entry["scores"]["selection"]["accuracy"] for entry in result["history"]]
    chosen = result["history"][scores.index(max(scores))]
    assert result["step"] == chosen["step"]
    assert summary["mean"] == {"eval": chosen["scores"]["eval"]}
    with pytest.raises(UserError, match="too few to hold some out"):
        run(saved_model, pair_task, tmp_path / "few", selection="train_split", max_train_rows=1)


def test_evaluating_every_few_steps(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    run(saved_model, pair_task, tmp_path, eval_every=3)
    result = json.loads((tmp_path / "seed-0" / "result.json").read_text())
    assert [entry["step"] for entry in result["history"]] == [3, 6, 8]  # and the last step


def test_a_model_saved_in_half_precision_starts_in_float32(saved_model: Path, tiny_tokenizer, tmp_path: Path) -> None:
    half = BitBertForPreTraining.from_pretrained(saved_model / "final", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    source = open_source(str(tmp_path), None)
    assert {tensor.dtype for tensor in source.tensors.values() if tensor.is_floating_point()} == {torch.float32}
    whole = open_source(str(saved_model), None)
    name = "bitbert.layers.0.output.weight"
    assert torch.equal(source.tensors[name], whole.tensors[name].bfloat16().float())
    assert source.fingerprint != whole.fingerprint


def test_packed_and_latent_sources_start_from_the_same_function(
    pair_task: TaskData, saved_model: Path, packed_model: Path, tiny_tokenizer
) -> None:
    ids = torch.randint(5, tiny_tokenizer.vocab_size, (2, 12))
    models = [open_source(str(path), None).build(pair_task.head, seed=0).eval() for path in (saved_model, packed_model)]
    with torch.no_grad():
        assert torch.allclose(models[0](ids).logits, models[1](ids).logits, atol=1e-5)


def test_bits_flip_when_finetuning_starts_from_bits(pair_task: TaskData, packed_model: Path, tmp_path: Path) -> None:
    name = "bitbert.layers.0.intermediate.weight_bits"
    before = load_packed(packed_model).tensors[name]
    flips = {}
    for spread in (True, False):
        source = open_source(str(packed_model), None, spread=spread)
        finetune(source, pair_task, RECIPE, [0], tmp_path / str(spread), model_name="m")
        after = load_packed(tmp_path / str(spread) / "seed-0" / "packed").tensors[name]
        flips[spread] = int(np.unpackbits(before ^ after).sum())
    # Eight steps of 1e-3 do not carry weights of ±0.1 over zero; those spread towards zero flip.
    assert flips[False] == 0
    assert flips[True] > 10


def test_full_precision_source_needs_a_method_and_is_calibrated(
    pair_task: TaskData, tiny_teacher: Path, saved_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="pass --method baseline"):
        open_source(str(tiny_teacher), None)
    with pytest.raises(UserError, match="is binary already"):
        open_source(str(saved_model), "baseline")
    source = open_source(str(tiny_teacher), "baseline")
    assert (source.config.pooler, source.config.residual_rank) == ("plain", 0)
    finetune(source, pair_task, RECIPE, [0], tmp_path, model_name="m")
    assert load_packed(tmp_path / "seed-0" / "packed").config.method == "baseline"


def test_a_method_that_cannot_be_packed_keeps_its_latent_weights(
    pair_task: TaskData, tiny_tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("ternarybert", vocab_size=tiny_tokenizer.vocab_size)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save(tmp_path / "model")
    run(tmp_path / "model", pair_task, tmp_path / "out", epochs=1)
    assert "cannot be packed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "seed-0" / "packed").exists()
    assert "latent weights" in (tmp_path / "out" / "seed-0" / "model" / "README.md").read_text()


def test_regression(saved_model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,score\nthe king reads,1\nthe queen reads,2\nthe old river reads,3\n")
    summary = run(saved_model, read_own_task(path, path), tmp_path / "out")
    assert set(summary["mean"]["eval"]) == {"pearson", "spearman"}
    assert summary["majority"]["eval"]["pearson"] == 0
    assert Runtime.load(tmp_path / "out" / "seed-0" / "packed").classify(["the king"])[0].label is None


def test_word_classes_learn_and_leave_a_transformers_model(saved_model: Path, tmp_path: Path) -> None:
    rows = [{"tokens": ["the", name, "reads"], "tags": ["O", "B-who", "O"]} for name in ("king", "queen") * 8]
    path = write(tmp_path / "a.jsonl", rows)
    summary = run(saved_model, read_own_task(path, path), tmp_path / "out", epochs=8, learning_rate=1e-2)
    assert summary["mean"]["eval"]["entity_f1"] > 0.9
    assert summary["majority"]["eval"] == {"entity_f1": 0.0, "accuracy": pytest.approx(2 / 3)}
    model = BitBertForTokenClassification.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert model.config.id2label == {0: "B-who", 1: "O"}
    assert (tmp_path / "out" / "seed-0" / "model" / "tokenizer.json").is_file()
    with pytest.raises(UserError, match="cannot be packed"):
        pack_model(model, open_source(str(saved_model), None).tokenizer, max_length=32)


def test_question_answering(saved_model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [QUESTION] * 4)
    summary = run(saved_model, read_own_task(path, path), tmp_path / "out", epochs=12, learning_rate=1e-2)
    assert summary["mean"]["eval"] == {"f1": 1.0, "exact_match": 1.0}
    assert summary["majority"] == {"eval": {}}
    BitBertForQuestionAnswering.from_pretrained(tmp_path / "out" / "seed-0" / "model")


def test_training_rows_can_be_limited(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    source = open_source(str(saved_model), None)
    limited = RECIPE.model_copy(update={"max_train_rows": 8})
    assert len(encode_task(pair_task, source, RECIPE).train.features) == 64
    assert encode_task(pair_task, source, limited).train.examples.texts == pair_task.train.texts[:8]


def test_dropout_is_the_recipes_where_it_says_one(pair_task: TaskData, packed_model: Path) -> None:
    source = open_source(str(packed_model), None)
    for dropout, expected in ((None, 0.1), (0.3, 0.3)):
        config = source.build(pair_task.head, 0, dropout).config
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (expected, expected)


def test_clipping_schedule_and_optimizer_reach_the_weights(
    pair_task: TaskData, saved_model: Path, tmp_path: Path
) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"gradient_clipping": 1e-4},
        {"gradient_clipping": 1e-4, "clip_each_tensor": True},
        {"schedule": "linear"},
        {"optimizer": "bert_adam"},
        {"weight_decay": 0.5},
    ]
    weights = []
    for number, change in enumerate(changes):
        run(saved_model, pair_task, tmp_path / str(number), epochs=1, **change)
        weights.append(classifier(tmp_path / str(number)))
    assert not any(np.array_equal(weights[0], other) for other in weights[1:])
    assert not np.array_equal(weights[1], weights[2])


def test_diverging_finetuning_stops(pair_task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is .*; lower learning_rate"):
        run(saved_model, pair_task, tmp_path, learning_rate=1e30)
    assert not (tmp_path / "seed-0" / "result.json").exists()


def test_a_bert_without_pooler_gets_the_same_one_every_time(tiny_teacher: Path, tmp_path: Path) -> None:
    BertForMaskedLM.from_pretrained(tiny_teacher).save_pretrained(tmp_path)
    load_tokenizer(str(tiny_teacher)).save(tmp_path)
    first, second = (open_source(str(tmp_path), "baseline") for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_sources_that_are_none(tmp_path: Path, saved_model: Path, pair_task: TaskData) -> None:
    with pytest.raises(UserError, match=r"neither final/ nor config\.json nor packed weights"):
        open_source(str(tmp_path), None)
    with pytest.raises(UserError, match="does not exist"):
        open_source("./no/such/model", None)
    with pytest.raises(UserError, match="above the model's 48 positions"):
        run(saved_model, pair_task, tmp_path, max_length=64)


@pytest.mark.parametrize("damage", BERT_DAMAGE)
def test_damaged_latent_weights_are_named_in_a_sentence(
    damage: Callable[[Path], None], saved_model: Path, pair_task: TaskData, tmp_path: Path
) -> None:
    shutil.copytree(saved_model / "final", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=r"cannot be loaded: .+; it is damaged|holds list|of another shape .'bitbert"):
        open_source(str(tmp_path / "model"), None).build(pair_task.head, seed=0)


@pytest.fixture(scope="module")
def packed_minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer model over the real 30,522-word vocabulary."""
    from bitbert.tokenizer import load_tokenizer
    from tests.conftest import MINILM

    tokenizer = load_tokenizer(MINILM)
    model = tiny_model("bitbert", vocab_size=tokenizer.vocab_size, num_hidden_layers=1, max_position_embeddings=64)
    folder = tmp_path_factory.mktemp("minilm") / "packed"
    save_packed(folder, pack_model(model, tokenizer, max_length=64), "# card\n")
    return folder


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_real_glue_tasks_run_to_a_packed_model(
    name: str, data_folder: Path, packed_minilm: Path, tmp_path: Path
) -> None:
    """Real files and vocabulary; a few rows, a one-layer model."""
    (task,) = read_glue_tasks([TASKS[name]], data_folder / "glue")
    dev = {"dev": task.evaluation["dev"].take(np.arange(32))}
    test = {name: examples.take(np.arange(8)) for name, examples in task.test.items()}
    small = dataclasses.replace(task, evaluation=dev, test=test)
    recipe = FinetuneConfig(epochs=1, max_train_rows=32, max_length=64, learning_rate=1e-4)
    summary = finetune(open_source(str(packed_minilm), None), small, recipe, [0], tmp_path, model_name="m")
    assert set(summary["mean"]["dev"]) == set(task.head.metrics)
    assert summary["caveats"] == [f"{task.title} was trained on the first 32 rows only"]
    assert Runtime.load(tmp_path / "seed-0" / "packed").config.num_outputs == (1 if name == "stsb" else 2)
