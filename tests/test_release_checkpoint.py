"""A release is the same bits with a card made of the runs' records, and loads by its name."""

import json
from pathlib import Path

import pytest

from benchmarks.release_checkpoint import release
from bitbert import released
from bitbert.config import check_config
from bitbert.errors import UserError
from bitbert.finetune.run import run_plan
from bitbert.finetune.source import open_source
from bitbert.model.export import pack_model
from bitbert.packed import save_packed
from bitbert.pretrain.config import PretrainConfig
from bitbert.runtime import Runtime
from bitbert.tokenizer import load_tokenizer
from tests.conftest import MINILM, REPOSITORY, tiny_model
from tests.finetune.conftest import RECIPE, packed_model, pair_task  # noqa: F401 (fixtures)


@pytest.fixture
def run(tiny_shards: Path, tmp_path: Path) -> Path:
    """The record of a pretraining whose teacher got its masked-LM head from us."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "training.json").write_text(json.dumps({"config": {"teacher": "some/bert"}}))
    config = check_config(
        PretrainConfig,
        {
            "output": str(tmp_path / "run"),
            "data": {"train": f"{tiny_shards}/train", "heldout": f"{tiny_shards}/heldout"},
            "tokenizer": "some/bert",
            "teacher": str(teacher),
            "model": {"method": "bipft-b"},
            "optimizer": {"learning_rate": 0.003, "warmup_steps": 1},
            "steps": 7,
        },
        "test",
    )
    record = {
        "max_length": 32,
        "steps": 7,
        "tokens": 1_234_567,
        "final_metrics": {"eval/mlm_loss": 5.4321},
        "config": config.model_dump(mode="json"),
    }
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "training.json").write_text(json.dumps(record))
    return tmp_path / "run"


def test_a_release_has_its_card_and_loads_by_name(
    packed_model: Path,  # noqa: F811
    pair_task,  # noqa: F811
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1, "max_train_rows": 16})
    run_plan(open_source(str(packed_model), None), [pair_task], recipe, [0], tmp_path / "tasks", model_name="x")
    rows = [{"model": "bits", "spearman": 0.5}, {"model": "float", "spearman": 0.8}]
    (tmp_path / "sentences.json").write_text(json.dumps({"set": "STS-B dev", "rows": rows}))
    checkpoints = tmp_path / "checkpoints"
    one = json.loads((tmp_path / "tasks" / "results.json").read_text())
    several = {"model": "x", "tasks": {"first": one, "second": one | {"title": "another"}}}
    (tmp_path / "results.json").write_text(json.dumps(several))
    options = {"teacher_license": "Apache-2.0", "results": tmp_path / "results.json"}
    more = {"sentences": tmp_path / "sentences.json", "data": ["more: MIT"]}
    quick = REPOSITORY / "configs" / "finetune" / "quick.yaml"
    folder = release(packed_model, "bitbert-tiny", run, checkpoints, recipe=quick, **more, **options)
    assert (folder / "finetune.yaml").read_text() == quick.read_text()
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (packed_model / weights).read_bytes()
    card = (folder / "README.md").read_text()
    for expected in (
        "# bitbert-tiny",
        "bitbert-finetune bitbert-tiny --task",
        "Finetuning follows finetune.yaml",
        "For the scores below, copies were finetuned on",
        "corpus.jsonl: not stated",
        "`some/bert with our masked-LM head`, Apache-2.0",
        "- more: MIT",
        "learning_rate: 0.003",
        "7 steps, 1.2 M tokens",
        "mlm_loss 5.4321",
        "x 100: 50.0; the full-precision teacher's: 80.0",
        "cut to 32 tokens",
        "| accuracy |",
        ", another by `bitbert-finetune`",
        "| another |",
    ):
        assert expected in card
    assert str(tmp_path) not in card
    monkeypatch.setattr(released, "FOLDER", checkpoints)
    assert Runtime.load("bitbert-tiny").classify(["the king reads"])[0].label
    with pytest.raises(UserError, match="already exists"):
        release(packed_model, "bitbert-tiny", run, checkpoints, **options)

    task = release(tmp_path / "tasks" / "seed-0" / "packed", "bitbert-tiny-task", run, checkpoints, **options)
    card = (task / "README.md").read_text()
    assert "\nFinetuned on" in card
    assert not (task / "finetune.yaml").exists()
    assert "Finetuning follows" not in card
    assert "epochs: 1" in card
    assert "bitbert-finetune bitbert-tiny-task" not in card
    assert '.classify(["a text"])[0].label  # ' in card
    assert "Nothing is downloaded." in card


def test_the_card_of_a_model_for_pairs(
    packed_model: Path,  # noqa: F811
    pair_task,  # noqa: F811
    run: Path,
    tmp_path: Path,
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1, "max_train_rows": 16, "pairs": "bi_encoder"})
    run_plan(open_source(str(packed_model), None), [pair_task], recipe, [0], tmp_path / "task", model_name="x")
    options = {"teacher_license": "MIT", "results": tmp_path / "task" / "results.json"}
    folder = release(tmp_path / "task" / "seed-0" / "packed", "bitbert-pairs", run, tmp_path / "c", **options)
    card = (folder / "README.md").read_text()
    for expected in (
        'bitbert-predict bitbert-pairs "a text" "another text"',
        '.classify([("a text", "another text")])[0].label  # different or same',
        "pairs: bi_encoder",
        "answers every pair of texts with one of its labels.",
    ):
        assert expected in card


def test_a_vocabulary_of_others_is_named_and_not_copied(run: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MINILM)
    packed = pack_model(tiny_model("bipft-b", vocab_size=tokenizer.vocab_size), tokenizer, max_length=32)
    save_packed(tmp_path / "packed", packed, "# card\n")
    options = {"teacher_license": "MIT", "tokenizer": [MINILM]}
    for labels in ("one", "one,one"):
        with pytest.raises(UserError, match="--labels names 1 classes, the model has"):
            release(tmp_path / "packed", "bitbert-x", run, tmp_path / "c", **options, labels=labels)
    folder = release(tmp_path / "packed", "bitbert-x", run, tmp_path / "c", **options, labels="other,next")
    assert not (folder / "tokenizer.json").exists()
    card = (folder / "README.md").read_text()
    assert f"it is read from `{MINILM}`, and checked by its hash." in card
    assert "head nsp: other, next" in card
    assert Runtime.load(folder).classify(["the king reads"])[0].label in ("other", "next")


def test_a_recipe_that_no_finetuning_would_take_is_refused(packed_model: Path, run: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rats: 1.0e-3\n")
    with pytest.raises(UserError, match="learning_rats"):
        release(packed_model, "bitbert-x", run, tmp_path / "c", teacher_license="MIT", recipe=recipe)
    assert not (tmp_path / "c").exists()


def test_names_that_no_door_would_find_are_refused(packed_model: Path, run: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="wanted one that begins with bitbert-"):
        release(packed_model, "tiny", run, tmp_path, teacher_license="MIT")
