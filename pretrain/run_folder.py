"""The run folder: what lies where, and whose it is. Imports nothing heavy: a login node checks with it."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitbert.config import dump_config, read_mapping
from bitbert.errors import UserError
from bitbert.mlflow_mirror import forget_runs_of

from .config import PretrainConfig
from .head_config import TeacherHeadConfig

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
STEP_PREFIX = "step-"
FINAL = "final"
STOP_FILE = "STOP"
"""Whoever creates this file ends the run within a step, with a checkpoint; the run removes it."""

_MAY_CHANGE = (
    "output",  # a copied or moved folder is the same run
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

    How it goes on and ends (``phases``, ``steps``, ``optimizer.decay_steps`` and ``floor``) may change as long as that
    changes no row and no rate of an update that was taken: append a phase to a run that has ended, lengthen a
    warmup-stable-decay run, or copy its folder and let the copy decay early.

    Raises:
        UserError: the folder holds a run with another config.
    """
    path = Path(config.output) / CONFIG_FILE
    if path.exists():
        new = config.model_dump(mode="json")
        found = read_recorded_config(path.parent)
        old = _validated(found, type(config))
        recorded, wanted = _identity(found if old is None else old.model_dump(mode="json")), _identity(new)
        changed = [key for key in sorted({*recorded, *wanted}) if recorded.get(key) != wanted.get(key)]
        if changed and old is not None and _without_ending(recorded) == _without_ending(wanted):
            _refuse_other_updates(old, config)
        elif changed:
            key = changed[0]
            raise UserError(
                f"run folder {config.output!r} holds a run with {key}={json.dumps(recorded.get(key))}, "
                f"this config says {json.dumps(wanted.get(key))}; "
                "choose another output=..., or remove the folder"
            )


def read_recorded_config(folder: Path) -> dict[str, Any]:
    """The config that a run folder's start left there, as it is.

    Raises:
        UserError: ``folder`` is no run folder, or the file is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} is no run folder: {CONFIG_FILE} is missing; give the folder of a run's output"
        )
    advice = "restore it, or choose another output"
    try:
        found = read_mapping(path)
    except UserError as error:
        raise UserError(f"{error}; {advice}") from error
    if not {"output", "tracking"} <= set(found):
        raise UserError(f"config file {str(path)!r} holds no run's config; {advice}")
    return found


def _without_ending(config: dict[str, Any]) -> dict[str, Any]:
    optimizer = {
        key: value for key, value in config.get("optimizer", {}).items() if key not in ("decay_steps", "floor")
    }
    return {**config, "steps": None, "phases": None, "optimizer": optimizer}


def _refuse_other_updates(old: PretrainConfig | TeacherHeadConfig, new: PretrainConfig | TeacherHeadConfig) -> None:
    taken = newest_step(Path(new.output))
    if taken > new.steps or (taken and old.course(taken) != new.course(taken)):
        raise UserError(
            f"run folder {new.output!r} has taken {taken} of steps={old.steps}, and with steps={new.steps} and "
            f"optimizer.decay_steps={new.optimizer.decay_steps} ({new.optimizer.schedule}) some of these "
            "updates would have other rows or another rate; a run can be given a phase after its last step, and a "
            "warmup-stable-decay run can end at another step before its decay begins. Choose another output=..., "
            "or go on as it was"
        )


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies below ``root``; names sort as steps do."""
    return root / f"{STEP_PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix(STEP_PREFIX))


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first; a copy under another name, such as ``step-00000100-kept``, is none."""
    found = root.glob(f"{STEP_PREFIX}*") if root.is_dir() else []
    return sorted(folder for folder in found if folder.name.removeprefix(STEP_PREFIX).isdecimal())


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in a run folder, whether it is sound or not; 0 without one."""
    return max(map(step_of, list_checkpoints(folder / CHECKPOINTS)), default=0)


def claim_folder(config: PretrainConfig | TeacherHeadConfig) -> None:
    """Write the resolved config into the run folder; where that is a copy of another, they are two runs for MLflow.

    Raises:
        UserError: the folder holds a run with another config.
    """
    refuse_other_run(config)
    folder = Path(config.output)
    if (folder / CONFIG_FILE).exists():
        forget_runs_of(Path(read_recorded_config(folder)["output"]), folder)
    dump_config(config, folder / CONFIG_FILE)


def _validated(
    recorded: dict[str, Any], kind: type[PretrainConfig | TeacherHeadConfig]
) -> PretrainConfig | TeacherHeadConfig | None:
    """A recorded config with the keys that came later: their defaults are what the run did without them."""
    try:
        return kind.model_validate(recorded)
    except ValidationError:
        return None  # keys that are gone: the comparison names one


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a dumped config that decides what a run computes."""
    phases = [{k: v for k, v in phase.items() if k not in _MAY_CHANGE} for phase in config.get("phases", [])]
    return {key: value for key, value in config.items() if key not in _MAY_CHANGE} | {"phases": phases}
