"""The series of recipes and the sentence encoder at toy scale: they measure what they say, and resume."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoConfig

from bitbert.errors import UserError
from bitbert.finetune.sequence import TextExamples
from bitbert.model import BitBertForPreTraining
from bitbert.model.methods import check_packable
from bitbert.pretrain.curriculum import Curriculum
from bitbert.pretrain.student import student_config
from bitbert.resources import resolve
from bitbert.tokenizer import load_tokenizer
from tests.conftest import MINILM
from tests.finetune.conftest import packed_model, tiny_glue  # noqa: F401 (fixtures)
from tests.pretrain.runs import in_child


def test_correlations_are_of_cosines() -> None:
    from sentence_encoder import correlations

    angles = {"a": 0.0, "b": 0.2, "c": 0.9, "d": 2.0}

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([[3 * np.cos(angles[text]), 3 * np.sin(angles[text])] for text in texts])

    pairs = TextExamples(["a", "a", "a"], ["b", "c", "d"], np.array([5.0, 3.0, 1.0], np.float32))
    assert correlations(encode, pairs)["spearman"] == pytest.approx(1)
    backwards = TextExamples(pairs.texts, ["d", "c", "b"], pairs.labels)
    assert correlations(encode, backwards)["spearman"] == pytest.approx(-1)


def test_padding_does_not_change_an_encoding(tiny_teacher: Path) -> None:
    from sentence_encoder import teacher_encoder

    encode, num_bytes = teacher_encoder(str(tiny_teacher))
    texts = ["the king reads", "a"]
    np.testing.assert_allclose(encode(texts)[1], encode(texts[1:])[0], atol=1e-5)
    assert num_bytes > 4 * 32 * load_tokenizer(str(tiny_teacher)).vocab_size


def test_the_sentence_encoder_writes_both_rows(
    packed_model: Path,  # noqa: F811
    tiny_teacher: Path,
    tiny_glue: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sentence_encoder

    options = ["--teacher", str(tiny_teacher), "--glue-dir", str(tiny_glue), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["sentence_encoder.py", str(packed_model), *options])
    sentence_encoder.main()
    packed, teacher = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert packed["bytes"] < teacher["bytes"]
    assert -1 <= packed["spearman"] <= 1
    assert f"{100 * teacher['spearman']:.2f}" in capsys.readouterr().out


@pytest.fixture
def tiny_recipes(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> Path:
    base = {
        "data": {"train": f"{tiny_shards}/train", "heldout": f"{tiny_shards}/heldout"},
        "tokenizer": str(tiny_teacher),
        "teacher": str(tiny_teacher),
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "steps": 2,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "eval_rows": 16,
        "calibration_rows": 4,
    }
    recipes = {"broken": ["data.train=no-shards"], "channel": [[["steps=2"], "model.fields.weight_scale=channel"]]}
    path = tmp_path / "recipes.yaml"
    path.write_text(yaml.safe_dump({"base": base, "recipes": recipes}))
    return path


def test_a_series_ends_in_its_table_and_goes_on_where_it_was(
    tiny_recipes: Path,
    tiny_glue: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One recipe is trained already, the other cannot be: its process says why."""
    import choose_recipe
    import distance_to_teacher

    from bitbert.pretrain.loop import pretrain

    def series(*only: str) -> dict:
        configs = choose_recipe.read_recipes(tiny_recipes, [], tmp_path / "work", list(only))
        if not (tmp_path / "work" / "channel").exists():
            in_child(lambda: pretrain(configs["channel"]))
        choose_recipe.Series(configs, tmp_path / "work", tmp_path / "out.json", tiny_glue).run(1)
        return json.loads((tmp_path / "out.json").read_text())

    found = series()
    assert not found["complete"]
    trained, failed = found["rows"]
    assert (trained["recipe"], failed["recipe"]) == ("channel", "broken")
    assert failed["failed"].startswith("exit code 2: error: ")
    assert "no-shards" in failed["failed"]
    last = [line for line in read_lines(tmp_path / "work" / "channel" / "metrics.jsonl") if "eval/mlm_loss" in line][-1]
    assert trained["mlm_loss"] == pytest.approx(last["eval/mlm_loss"], rel=1e-4)
    assert trained["layer_error"][-1] == pytest.approx(last["eval/hidden_error"], rel=1e-4)
    assert len(trained["layer_error"]) == len(trained["layer_cosine"]) == 3
    assert all(f"| {name} |" in (tmp_path / "out.md").read_text() for name in ("broken", "channel"))

    run = tmp_path / "work" / "channel"
    monkeypatch.setattr("sys.argv", ["distance_to_teacher.py", str(run), "--json", str(tmp_path / "distance.json")])
    distance_to_teacher.main()
    alone = json.loads((tmp_path / "distance.json").read_text())
    assert {key: trained[key] for key in alone if key != "run"} == {key: alone[key] for key in alone if key != "run"}
    assert f"| {alone['layer_error'][-1]:.3f} |" in (printed := capsys.readouterr().out)
    with monkeypatch.context() as patched:
        patched.setattr(distance_to_teacher, "measure_run", lambda *arguments: alone)
        patched.setattr("sys.argv", ["distance_to_teacher.py", str(run), "--rows", "8"])
        distance_to_teacher.main()
    assert capsys.readouterr().out == printed
    assert attended_with_steps(run, [0.0, 4.0], tmp_path) == [1, 0]  # of text alone: rows are padded
    with pytest.raises(UserError, match="has no final/; finish it"):
        distance_to_teacher.measure_run(unfinished(run, tmp_path / "unfinished"), None)

    def measure_again(*arguments: object) -> dict:
        raise AssertionError("measured again")

    monkeypatch.setattr(choose_recipe, "measure", measure_again)
    again = series("channel")
    assert again["complete"]
    assert again["rows"] == [trained]
    with pytest.raises(UserError, match="holds a run with seed=42"):
        choose_recipe.read_recipes(tiny_recipes, ["seed=7"], tmp_path / "work", [])


def attended_with_steps(run: Path, steps: list[float], folder: Path) -> list[float]:
    """What the run's model attends to with all keys alike, and other steps of its attention probabilities."""
    import distance_to_teacher

    shutil.copytree(run, folder / "altered")
    student = BitBertForPreTraining.from_pretrained(run / "final")
    for layer, step in zip(student.bitbert.layers, steps, strict=True):
        layer.attention.query_binarizer.alpha.data.fill_(0.0)  # scores of nearly 0
        layer.attention.probability_binarizer.alpha.data.fill_(step)
    student.save_pretrained(folder / "altered" / "final")
    found = distance_to_teacher.measure_run(folder / "altered", None)
    assert found["attention_step"] == steps
    return list(found["attended"])


def unfinished(run: Path, copy: Path) -> Path:
    copy.mkdir()
    shutil.copy(run / "config.yaml", copy)
    return copy


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_recipes_of_the_repository_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import choose_recipe

    monkeypatch.setattr(choose_recipe, "require_local_or_hub", lambda name, what: name)
    configs = choose_recipe.read_recipes(choose_recipe.RECIPES, [], tmp_path, [])
    assert {config.seed for config in configs.values()} == {42}
    assert {(config.steps, config.global_batch_size) for config in configs.values()} == {(260, 32)}
    assert configs["bipft-b-published"].model.fields == {}
    teacher = AutoConfig.from_pretrained(resolve(MINILM))
    for config in configs.values():
        student = student_config(config.model, teacher)
        Curriculum(config.curriculum, student)
        check_packable(student)
    with pytest.raises(UserError, match="--only x is not a recipe"):
        choose_recipe.read_recipes(choose_recipe.RECIPES, [], tmp_path, ["x"])


def test_a_missing_teacher_is_said_before_anything_runs(tiny_recipes: Path, tmp_path: Path) -> None:
    import choose_recipe

    with pytest.raises(UserError, match=r"recipe broken: teacher './none' does not exist"):
        choose_recipe.read_recipes(tiny_recipes, ["teacher=./none"], tmp_path, [])
