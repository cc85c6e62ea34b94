"""The smoke config on tiny shards with a tiny teacher, for every test that runs the trainer."""

from pathlib import Path

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


def distilling_overrides(shards: Path, teacher: Path) -> list[str]:
    """As :func:`tiny_overrides`, with both published distillation terms, decay and clipping."""
    return [
        *tiny_overrides(shards, teacher),
        "loss.nsp_distillation=1.0",
        "loss.mlm_distillation=0.5",
        "loss.temperature=2.0",
        "optimizer.weight_decay=0.01",
        "optimizer.gradient_clipping=5.0",
    ]
