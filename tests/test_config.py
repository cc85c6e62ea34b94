"""Configs: overrides, environment variables, and errors that name every problem at once."""

from pathlib import Path

import pytest

from bitbert.config import load_config
from bitbert.errors import UserError
from bitbert.pretrain.config import PretrainConfig

MINIMAL = "output: out\ndata: {train: a, heldout: b}\ntokenizer: t\nteacher: t\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def test_overrides_reach_nested_keys_with_yaml_types(config_file: Path) -> None:
    config = load_config(
        PretrainConfig,
        config_file,
        [
            "optimizer.learning_rate=1e-3",
            "tracking.mlflow_uri=null",
            "model.fields={hidden_dropout_prob: 0.0}",
        ],
    )
    assert config.optimizer.learning_rate == 1e-3
    assert config.tracking.mlflow_uri is None
    assert config.model.fields == {"hidden_dropout_prob": 0.0}


def test_environment_variables_are_expanded(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/somewhere")
    config = load_config(PretrainConfig, config_file, ["output=${WHERE}/run", "teacher=${UNSET_NAME:-fallback}"])
    assert (config.output, config.teacher) == ("/somewhere/run", "fallback")
    with pytest.raises(UserError, match="UNSET_NAME, which is not set"):
        load_config(PretrainConfig, config_file, ["output=${UNSET_NAME}"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["stpes=5", "loss.mlm=-1", "optimizer.learning_rat=1"],
            [
                "3 problems",
                "stpes: unknown key; did you mean 'steps'?",
                "loss.mlm: got -1",
                "did you mean 'learning_rate'?",
            ],
        ),
        (  # the unknown keys of a section share one list of known ones
            ["zzz=1", "qqq=2", "loss.zzz=1"],
            [
                "2 problems",
                "zzz, qqq: unknown keys; known keys: calibration_rows, ",
                "loss.zzz: unknown key; known keys: hidden, ",
            ],
        ),
    ],
)
def test_all_problems_in_one_message(config_file: Path, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(PretrainConfig, config_file, overrides)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_missing_key_says_how_to_set_it(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("output: x\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"teacher: missing.*set it in the file or as teacher=..."):
        load_config(PretrainConfig, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list\n", "wanted a mapping"),
        ("a: [1\n", "not valid YAML"),
        (f"{MINIMAL}steps: 5\nteacher: u\n", "key 'teacher' stands there twice"),
        (f"{MINIMAL}optimizer:\n  floor: 0\n  floor: 0.1\n", "key 'floor' stands there twice"),
        (f"{MINIMAL}model: &own {{fields: *own}}\n", "a value contains itself"),
        ("a: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_config(PretrainConfig, path)


def test_merged_mappings_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(MINIMAL + "optimizer: {<<: {floor: 0.1, beta1: 0.5}, floor: 0.2}\n", encoding="utf-8")
    optimizer = load_config(PretrainConfig, path).optimizer
    assert (optimizer.floor, optimizer.beta1) == (0.2, 0.5)


@pytest.mark.parametrize(
    "override", ["steps", "=5", "steps.x=3", "steps=[1", "loss={mlm: 1, mlm: 2}", f"steps={'[' * 5000}"]
)
def test_bad_overrides(config_file: Path, override: str) -> None:
    config_file.write_text(MINIMAL + "steps: 5\n", encoding="utf-8")
    with pytest.raises(UserError, match="override"):
        load_config(PretrainConfig, config_file, [override])


def test_missing_file() -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(PretrainConfig, "no/such.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("global_batch_size=100", "not a multiple of micro_batch_size"),
        ("steps=10", "above steps 10"),
        ("optimizer.learning_rate=.inf", "learning_rate: got inf: Input should be a finite number"),
        ("output=", "output: got None"),
        ("output=''", "output: got ''"),
    ],
)
def test_values_that_do_not_fit_each_other(config_file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(PretrainConfig, config_file, [override])
