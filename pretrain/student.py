"""The student before its first step: weights from the teacher, step sizes from a calibration batch, saved."""

from pathlib import Path

import torch
from torch import nn

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import finish_publishing, publish_folder, read_json, sha256_file, write_json_atomically
from bitbert.model import BitBertConfig, BitBertForPreTraining
from bitbert.model.configuration import binary_config, inherited_fields
from bitbert.model.convert import from_full_precision, mark_calibrated
from bitbert.model.linear import named_step_sizes

from .config import ModelSection
from .manifest import find_damage, write_manifest
from .teacher import Teacher

CALIBRATION = "calibration"
_STEP_SIZES = "step_sizes.json"


def student_config(section: ModelSection, teacher_config: object) -> BitBertConfig:
    """The teacher's shape with the preset's method and the config's own fields.

    Raises:
        UserError: an unknown field, a value of the wrong kind, or another shape than the teacher's.
    """
    return binary_config(inherited_fields(teacher_config), section.method, section.fields, "model.fields")


def build_student(config: BitBertConfig, teacher: Teacher, seed: int) -> BitBertForPreTraining:
    """A student with the teacher's weights; what the teacher lacks is drawn from ``seed``."""
    torch.manual_seed(seed)
    return from_full_precision(teacher.tensors, config)


def save_step_sizes(model: nn.Module, folder: Path) -> None:
    """Write all step sizes to the run folder, as JSON with a hash; float32 values survive exactly."""
    finish_publishing(folder, CALIBRATION)
    with publish_folder(folder / CALIBRATION, replace=True) as temporary:
        path = temporary / _STEP_SIZES
        write_json_atomically(path, {name: parameter.item() for name, parameter in named_step_sizes(model).items()})
        write_manifest(temporary, {_STEP_SIZES: sha256_file(path)})


@torch.no_grad()
def load_step_sizes(model: nn.Module, folder: Path) -> bool:
    """Set step sizes saved by an earlier start of the same run; False when there are none, or damaged ones.

    Raises:
        UserError: the file belongs to another model.
    """
    if not (folder / CALIBRATION).exists():
        return False
    damage = find_damage(folder / CALIBRATION, [_STEP_SIZES])
    if damage is not None:
        log(f"{CALIBRATION}: {damage}; calibrating again")
        return False
    path = folder / CALIBRATION / _STEP_SIZES
    saved, parameters = read_json(path, "step sizes"), named_step_sizes(model)
    if set(saved) != set(parameters):
        raise UserError(
            f"{str(path)!r} holds the step sizes of another model; use another output or remove the run folder"
        )
    for name, parameter in parameters.items():
        parameter.fill_(saved[name])
    mark_calibrated(model)
    return True
