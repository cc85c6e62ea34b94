"""The process around the engine: the environment that a run finds is the one that it leaves."""

import os
from pathlib import Path

import pytest

from bitbert.config import load_config
from bitbert.pretrain import loop
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.loop import Trainer, pretrain
from tests.pretrain.runs import in_child
from tests.pretrain.settings import SMOKE, tiny_overrides


def test_runs_leave_the_environment_as_they_found_it(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails, one that ends, and another in the same process."""
    overrides = [*tiny_overrides(tiny_shards, tiny_teacher), "steps=1", "optimizer.warmup_steps=0"]
    configs = [load_config(PretrainConfig, SMOKE, [*overrides, f"output={tmp_path}/{name}"]) for name in "abc"]
    train = Trainer.train

    def check_and_train(trainer: Trainer) -> None:
        assert os.environ["WORLD_SIZE"] == "1"
        assert os.environ["MASTER_PORT"] != "1"
        if trainer.config.output.endswith("a"):
            raise RuntimeError("planted")
        train(trainer)

    def act() -> list[dict[str, str]]:
        os.environ["MASTER_PORT"] = "1"  # somebody else's
        os.environ.pop("DS_ACCELERATOR", None)
        found = [dict(os.environ)]
        with pytest.raises(RuntimeError, match="planted"):
            pretrain(configs[0])
        found.append(dict(os.environ))
        for config in configs[1:]:
            pretrain(config)
            found.append(dict(os.environ))
        return found

    monkeypatch.setattr(loop.Trainer, "train", check_and_train)
    before, *after = in_child(act)
    assert [each == before for each in after] == [True] * 3
    assert (tmp_path / "c" / "final").is_dir()
