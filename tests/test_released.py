"""Released checkpoints are found by name by every door, checked, and named where the name is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bitbert import released
from bitbert.errors import UserError
from bitbert.finetune.source import open_source
from bitbert.runtime import Runtime
from bitbert.runtime.__main__ import app
from tests.golden.make_golden import PACKED

NAME = "bitbert-golden"
IDS = [2, 40, 41, 3]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkpoints"
    shutil.copytree(PACKED, folder / NAME)
    monkeypatch.setattr(released, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_runtime_answers_by_name(shipped: Path) -> None:
    answers = Runtime.load(NAME).logits(IDS, [0] * len(IDS))
    np.testing.assert_array_equal(answers, Runtime.load(PACKED).logits(IDS, [0] * len(IDS)))


def test_predict_answers_and_describes_by_name(shipped: Path) -> None:
    for arguments, expected in ((["the river"], "probability"), (["--info"], "binary weights")):
        result = CliRunner().invoke(app, [NAME, *arguments])
        assert result.exit_code == 0, result.output
        assert expected in result.output


def test_finetuning_starts_by_name(shipped: Path) -> None:
    assert open_source(NAME, None).fingerprint == open_source(str(PACKED), None).fingerprint
    with pytest.raises(UserError, match="is binary already"):
        open_source(NAME, "baseline")


def test_a_folder_of_that_name_comes_first(shipped: Path) -> None:
    Path(NAME).mkdir()
    with pytest.raises(UserError, match="is not a packed checkpoint"):
        Runtime.load(NAME)


def test_an_altered_checkpoint_is_refused(shipped: Path) -> None:
    weights = shipped / NAME / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="was altered or cut off"):
        Runtime.load(NAME)


@pytest.mark.parametrize("load", [Runtime.load, lambda name: open_source(name, None)])
def test_unknown_names_end_in_the_known_ones(shipped: Path, load) -> None:
    with pytest.raises(UserError, match="ships bitbert-golden; did you mean 'bitbert-golden'"):
        load("bitbert-goldem")
    shutil.rmtree(shipped / NAME)
    with pytest.raises(UserError, match="this version ships none"):
        load("bitbert-goldem")


def test_where_checkpoints_lie(tmp_path: Path) -> None:
    """Beside the package in a checkout, inside of it where it is installed."""
    package = tmp_path / "bitbert"
    assert released._shipped_folder(package) == package / "checkpoints"
    (tmp_path / "pyproject.toml").touch()
    assert released._shipped_folder(package) == tmp_path / "checkpoints"
    (package / "checkpoints").mkdir(parents=True)
    assert released._shipped_folder(package) == package / "checkpoints"  # the other file is of somebody else


def test_what_is_shipped_loads() -> None:
    names = {folder.name for folder in released.FOLDER.iterdir() if folder.is_dir()}
    assert names == set(released.released_names())
    assert all(Runtime.load(name).config.max_length > 0 for name in names)
