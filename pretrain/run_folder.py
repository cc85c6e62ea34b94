"""The run folder: what lies where, and whose it is. Imports nothing heavy: a login node checks with it."""

import json
from pathlib import Path
from typing import Any

import yaml

from bitbert.config import dump_config
from bitbert.errors import UserError

from .config import PretrainConfig
from .head_config import TeacherHeadConfig

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
FINAL = "final"
STOP_FILE = "STOP"
"""Whoever creates this file ends the run within a step, with a checkpoint; the run removes it."""

_MAY_CHANGE = (
    "tracking",
    "keep_checkpoints",
    "milestone_every",
    "failed_saves",
    "non_finite",
    "zero_stage",
    "check_replicas_every",
    "rank_timeout_s",
    "checkpoint_every",
    "eval_every",
    "eval_rows",
    "micro_batch_size",
    "device",
)


def refuse_other_run(config: PretrainConfig | TeacherHeadConfig) -> None:
    """Check that the run folder is new or belongs to this config.

    Raises:
        UserError: the folder holds a run with another config.
    """
    path = Path(config.output) / CONFIG_FILE
    if path.exists():
        recorded = _identity(yaml.safe_load(path.read_text(encoding="utf-8")))
        wanted = _identity(config.model_dump(mode="json"))
        changed = [key for key in sorted({*recorded, *wanted}) if recorded.get(key) != wanted.get(key)]
        if changed:
            key = changed[0]
            raise UserError(
                f"run folder {config.output!r} holds a run with {key}={json.dumps(recorded.get(key))}, "
                f"this config says {json.dumps(wanted.get(key))}; "
                "choose another output=..., or remove the folder"
            )


def claim_folder(config: PretrainConfig | TeacherHeadConfig) -> None:
    """Write the resolved config into the run folder.

    Raises:
        UserError: the folder holds a run with another config.
    """
    refuse_other_run(config)
    dump_config(config, Path(config.output) / CONFIG_FILE)


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a dumped config that decides what a run computes."""
    phases = [{k: v for k, v in phase.items() if k not in _MAY_CHANGE} for phase in config.get("phases", [])]
    return {key: value for key, value in config.items() if key not in _MAY_CHANGE} | {"phases": phases}
