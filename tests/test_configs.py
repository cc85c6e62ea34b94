"""Every YAML under configs/ is a whole, valid run."""

from pathlib import Path

import pytest

from bitbert.config import dump_config, load_config
from bitbert.data_prep.config import DataConfig, TokenizerConfig
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.stages import MethodConfig
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.head_config import TeacherHeadConfig
from tests.conftest import REPOSITORY

CLASSES = {
    "data_prep": DataConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "methods": MethodConfig,
    "heads": TeacherHeadConfig,
}
FILES = sorted((REPOSITORY / "configs").rglob("*.yaml"))


def test_each_room_has_a_smoke_config() -> None:
    for room in ("data_prep", "pretrain", "finetune"):
        assert (REPOSITORY / "configs" / room / "smoke.yaml").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_config_is_valid_and_survives_a_dump(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBERT_DATA", "data")
    config_class = TokenizerConfig if path.stem == "tokenizer" else CLASSES[path.parent.name]
    config = load_config(config_class, path)
    dump_config(config, tmp_path / "dumped.yaml")
    assert load_config(config_class, tmp_path / "dumped.yaml") == config
