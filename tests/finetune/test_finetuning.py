"""Finetuning from every kind of source, in this process, on a tiny pair task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bitbert.errors import UserError
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.data import TaskData, encode, read_csv_task
from bitbert.finetune.source import open_source
from bitbert.finetune.train import finetune, learning_rate, majority_scores
from bitbert.model.export import pack_model
from bitbert.packed import load_packed, save_packed
from bitbert.runtime import Runtime
from tests.conftest import run_module, tiny_model

RECIPE = FinetuneConfig(epochs=2, batch_size=16, max_length=32, learning_rate=1e-3)


@pytest.fixture(scope="module")
def task(tiny_shards: Path) -> TaskData:
    folder = tiny_shards / "pair_task"
    return read_csv_task(folder / "train.csv", folder / "eval.csv", regression=False)


@pytest.fixture(scope="module")
def saved_model(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining model as save_pretrained leaves it, in a folder that looks like a run's."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size).save_pretrained(folder / "final")
    tiny_tokenizer.save(folder / "final")
    return folder


@pytest.fixture(scope="module")
def packed_model(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    model = tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size)
    save_packed(folder, pack_model(model, tiny_tokenizer, max_length=32), "# card\n")
    return folder


def test_from_a_run_to_a_packed_task_model(task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    summary = finetune(open_source(str(saved_model), None), task, RECIPE, [0, 1], tmp_path, model_name="m")
    assert json.loads((tmp_path / "results.json").read_text())["mean"] == summary["mean"]
    assert set(summary["seeds"]) == {"0", "1"}
    values = [summary["seeds"][seed]["eval"]["accuracy"] for seed in ("0", "1")]
    assert summary["mean"]["eval"]["accuracy"] == pytest.approx(np.mean(values))
    assert summary["standard_deviation"]["eval"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert summary["majority"] == {"eval": {"accuracy": 0.5}}

    runtime = Runtime.load(tmp_path / "seed-0" / "packed")
    assert runtime.config.labels == ["different", "same"]
    examples = task.evaluation["eval"]
    predictions = runtime.classify(list(zip(examples.texts, examples.second_texts, strict=True)))
    right = [
        prediction.label == task.labels[label] for prediction, label in zip(predictions, examples.labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(values[0], abs=1 / len(examples))  # the score is the packed model's


def test_it_learns_its_training_set(task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    training_set = TaskData(task.name, task.train, {"train": task.train}, task.labels, task.metrics, 3)
    recipe = RECIPE.model_copy(update={"epochs": 20, "learning_rate": 3e-3})
    summary = finetune(open_source(str(saved_model), None), training_set, recipe, [0], tmp_path, model_name="m")
    assert summary["mean"]["train"]["accuracy"] > 0.75


def test_finished_seeds_are_skipped_and_other_recipes_refused(
    task: TaskData, saved_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(str(saved_model), None)
    first = finetune(source, task, RECIPE, [3], tmp_path, model_name="m")
    marker = (tmp_path / "seed-3" / "packed" / "model.safetensors").stat().st_mtime_ns
    again = finetune(source, task, RECIPE, [3], tmp_path, model_name="m")
    assert again == first
    assert (tmp_path / "seed-3" / "packed" / "model.safetensors").stat().st_mtime_ns == marker
    assert "seed 3: already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a result with another config"):
        finetune(source, task, RECIPE.model_copy(update={"epochs": 3}), [3], tmp_path, model_name="m")


def test_same_seed_same_bits(task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        finetune(open_source(str(saved_model), None), task, RECIPE, [0], tmp_path / name, model_name="m")
    tensors = [load_packed(tmp_path / name / "seed-0" / "packed").tensors for name in ("a", "b")]
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize(("selection", "pick"), [("best_epoch", max), ("last_epoch", lambda scores: scores[-1])])
def test_selection_is_what_it_says(task: TaskData, saved_model: Path, tmp_path: Path, selection: str, pick) -> None:
    recipe = RECIPE.model_copy(update={"selection": selection, "epochs": 4, "learning_rate": 5e-3})
    summary = finetune(open_source(str(saved_model), None), task, recipe, [0], tmp_path, model_name="m")
    history = json.loads((tmp_path / "seed-0" / "result.json").read_text())["history"]
    assert len(history) == 4
    assert summary["mean"]["eval"]["accuracy"] == pick([scores["eval"]["accuracy"] for scores in history])
    assert summary["selection"] == selection


def test_packed_and_latent_sources_start_from_the_same_function(
    task: TaskData, saved_model: Path, packed_model: Path, tiny_tokenizer
) -> None:
    ids = torch.randint(5, tiny_tokenizer.vocab_size, (2, 12))
    latent, packed = (open_source(str(path), None).build(task, seed=0).eval() for path in (saved_model, packed_model))
    with torch.no_grad():
        assert torch.allclose(latent(ids).logits, packed(ids).logits, atol=1e-5)


def test_full_precision_source_needs_a_method_and_is_calibrated(
    task: TaskData, tiny_teacher: Path, saved_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="pass --method baseline"):
        open_source(str(tiny_teacher), None)
    with pytest.raises(UserError, match="is binary already"):
        open_source(str(saved_model), "baseline")
    source = open_source(str(tiny_teacher), "baseline")
    assert (source.config.pooler, source.config.residual_rank) == ("plain", 0)
    finetune(source, task, RECIPE, [0], tmp_path, model_name="m")
    assert load_packed(tmp_path / "seed-0" / "packed").config.method == "baseline"


def test_regression_task(saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "text,label\n"
        + "".join(f"the {word} reads,{score}\n" for word, score in (("king", 1), ("queen", 2), ("old river", 3))),
        encoding="utf-8",
    )
    task = read_csv_task(tmp_path / "a.csv", tmp_path / "a.csv", regression=True)
    summary = finetune(open_source(str(saved_model), None), task, RECIPE, [0], tmp_path / "out", model_name="m")
    assert set(summary["mean"]["eval"]) == {"pearson", "spearman"}
    assert majority_scores(task)["eval"]["pearson"] == 0
    assert Runtime.load(tmp_path / "out" / "seed-0" / "packed").classify(["the king"])[0].label is None


def test_training_rows_can_be_limited(task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"max_train_rows": 8, "epochs": 1})
    source = open_source(str(saved_model), None)
    assert len(encode(task.train, source.tokenizer, 32)) == 64
    limited = finetune(source, task, recipe, [0], tmp_path / "few", model_name="m")
    whole = finetune(
        source,
        task,
        recipe.model_copy(update={"max_train_rows": None}),
        [0],
        tmp_path / "all",
        model_name="m",
    )
    few, all_rows = (
        load_packed(tmp_path / name / "seed-0" / "packed").tensors["classifier.weight"] for name in ("few", "all")
    )
    assert not np.array_equal(few, all_rows)
    assert limited["config"]["max_train_rows"] == 8
    assert whole["config"]["max_train_rows"] is None


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({}, [2, 2, 2, 2]),
        ({"schedule": "linear"}, [2, 1.5, 1, 0.5]),
        ({"schedule": "linear", "warmup_fraction": 0.5}, [1, 2, 2, 1]),
        ({"warmup_fraction": 0.5}, [1, 2, 2, 2]),
    ],
)
def test_learning_rate_is_its_closed_form(fields: dict, rates: list[float]) -> None:
    recipe = FinetuneConfig(learning_rate=2, **fields)
    assert [learning_rate(recipe, step, 4) for step in range(4)] == pytest.approx(rates)


def test_clipping_and_schedule_reach_the_weights(task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    weights = []
    for number, change in enumerate(({}, {"gradient_clipping": 1e-4}, {"schedule": "linear"})):
        recipe = RECIPE.model_copy(update={"epochs": 1, **change})
        finetune(open_source(str(saved_model), None), task, recipe, [0], tmp_path / str(number), model_name="m")
        weights.append(load_packed(tmp_path / str(number) / "seed-0" / "packed").tensors["classifier.weight"])
    assert not np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_diverging_finetuning_stops(task: TaskData, saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is .*; lower learning_rate"):
        finetune(
            open_source(str(saved_model), None),
            task,
            RECIPE.model_copy(update={"learning_rate": 1e30}),
            [0],
            tmp_path,
            model_name="m",
        )
    assert not (tmp_path / "seed-0").exists()


def test_sources_that_are_none(tmp_path: Path, saved_model: Path, task: TaskData) -> None:
    with pytest.raises(UserError, match=r"neither final/ nor config\.json nor packed weights"):
        open_source(str(tmp_path), None)
    with pytest.raises(UserError, match="does not exist"):
        open_source("./no/such/model", None)
    with pytest.raises(UserError, match="above the model's 48 positions"):
        finetune(
            open_source(str(saved_model), None),
            task,
            RECIPE.model_copy(update={"max_length": 64}),
            [0],
            tmp_path,
            model_name="m",
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sst2"], "needs --glue-dir"),
        (["--task", "sst3", "--glue-dir", "."], "did you mean 'sst2'"),
        (["--train", "a.csv"], "give either --task with --glue-dir, or both --train and --eval"),
        (["--task", "sst2", "--glue-dir", ".", "epohcs=3"], "did you mean 'epochs'"),
        (["--task", "rte", "--glue-dir", "no/such/folder"], "has no RTE/"),
    ],
)
def test_door_refuses_before_any_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitbert.finetune.__main__ import main

    monkeypatch.setattr("sys.argv", ["bitbert-finetune", "model", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("seeds", ["a", "1,1", "-1"])
def test_bad_seeds(
    seeds: str, tiny_shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitbert.finetune.__main__ import main

    folder = tiny_shards / "pair_task"
    monkeypatch.setattr(
        "sys.argv",
        [
            "f",
            "model",
            "--train",
            str(folder / "train.csv"),
            "--eval",
            str(folder / "eval.csv"),
            f"--seeds={seeds}",
        ],
    )
    with pytest.raises(SystemExit):
        main()
    assert "--seeds" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sst2", "cola", "mrpc", "stsb", "rte"])
def test_real_glue_tasks_run_to_a_packed_model(
    name: str, data_folder: Path, packed_minilm: Path, tmp_path: Path
) -> None:
    """Real files and vocabulary; a few rows, a one-layer model."""
    from bitbert.finetune.data import Examples, read_glue_task
    from bitbert.finetune.tasks import TASKS

    task = read_glue_task(TASKS[name], data_folder / "glue")
    dev = task.evaluation["dev"]
    few = Examples(dev.texts[:32], None if dev.second_texts is None else dev.second_texts[:32], dev.labels[:32])
    small = TaskData(task.name, task.train, {"dev": few}, task.labels, task.metrics, task.epochs)
    recipe = FinetuneConfig(epochs=1, max_train_rows=32, max_length=64, learning_rate=1e-4)
    summary = finetune(open_source(str(packed_minilm), None), small, recipe, [0], tmp_path, model_name="m")
    assert set(summary["mean"]["dev"]) == set(task.metrics)
    assert Runtime.load(tmp_path / "seed-0" / "packed").config.num_outputs == (1 if name == "stsb" else 2)


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


def test_help_teaches() -> None:
    result = run_module("bitbert.finetune", "--help")
    assert "bitbert-finetune runs/pretrain --task sst2 --glue-dir glue" in " ".join(result.stdout.split())
