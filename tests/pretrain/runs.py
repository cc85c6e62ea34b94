"""Runs inside of the test process: importing DeepSpeed once is most of what a run in its own process costs."""

import shutil
from pathlib import Path
from typing import Any

from bitbert.config import load_config
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.loop import pretrain
from bitbert.tracking import read_metrics
from tests.conftest import REPOSITORY

SMOKE = REPOSITORY / "configs" / "pretrain" / "smoke.yaml"


def tiny_overrides(shards: Path, teacher: Path) -> list[str]:
    """Overrides that put the tiny teacher and shards into the smoke config."""
    return [
        f"data.train={shards}/train",
        f"data.heldout={shards}/heldout",
        f"teacher={teacher}",
        f"tokenizer={teacher}",
    ]


def as_killed_after(step: int, finished: Path, folder: Path) -> Path:
    """A copy of a finished run in ``folder`` as a kill after its checkpoint of ``step`` would have left it."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (folder / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")
    (folder / "config.yaml").unlink()  # it names the other folder as its output
    return folder


def run_here(output: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run the smoke config with ``overrides`` to its end in this process; returns its metrics."""
    pretrain(load_config(PretrainConfig, SMOKE, [f"output={output}", *overrides]))
    return read_metrics(output / "metrics.jsonl")
