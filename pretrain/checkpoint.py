"""Contract 2: training checkpoints that are whole, hashed and free of pickle.

A checkpoint is a folder ``checkpoints/step-00000100`` with model.safetensors (latent weights and buffers),
optimizer.safetensors (AdamW's moments by parameter name), state.json and manifest.json (sha256 of each file). It is
written under a temporary name, flushed and renamed. Order of data, masks and dropout are functions of the step, so no
random state is stored, and a checkpoint does not depend on the number of ranks.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import publish_folder, read_json, sha256_file, write_json_atomically

FORMAT = "bitbert-training"
FORMAT_VERSION = 1
_MODEL, _OPTIMIZER, _STATE, _MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done: the next one has this number."""
        return int(self.state["step"])


def save_checkpoint(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path:
    """Write ``root/step-N`` (N from ``state["step"]``) and remove all but the newest ``keep`` checkpoints."""
    folder = root / f"step-{state['step']:08d}"
    with publish_folder(folder, replace=True) as temporary:
        save_file(_model_tensors(model), temporary / _MODEL)
        save_file(_optimizer_tensors(model, optimizer), temporary / _OPTIMIZER)
        write_json_atomically(temporary / _STATE, {"format": FORMAT, "format_version": FORMAT_VERSION, **state})
        hashes = {name: sha256_file(temporary / name) for name in (_MODEL, _OPTIMIZER, _STATE)}
        write_json_atomically(temporary / _MANIFEST, hashes)
    for old in list_checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(root.glob("step-*")) if root.is_dir() else []


def remove_unfinished(root: Path) -> None:
    """Delete what a kill during a save left behind; call it on one rank, before the first save."""
    for folder in root.glob(".step-*"):
        log(f"removing unfinished {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are named in the log and passed over.

    Raises:
        UserError: there are checkpoints, and none verifies.
    """
    folders = list_checkpoints(root)
    for folder in reversed(folders):
        problem = _problem(folder)
        if problem is None:
            return Checkpoint(folder, read_json(folder / _STATE, "checkpoint state"))
        log(f"checkpoint {folder.name}: {problem}; trying the one before")
    if folders:
        raise UserError(
            f"none of the {len(folders)} checkpoints in {str(root)!r} verifies; remove the folder to start anew"
        )
    return None


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Put a verified checkpoint's weights, and its moments, into ``model`` and ``optimizer``.

    Raises:
        UserError: it belongs to another model.
    """
    load_model_weights(checkpoint.folder / _MODEL, model)
    if optimizer is not None:
        _load_optimizer(checkpoint, model, optimizer)


def load_model_weights(path: Path, model: nn.Module) -> None:
    """Load latent weights by exact names and shapes; tied copies follow."""
    tensors = load_file(path)
    targets = _model_tensors(model, clone=False)
    if set(tensors) != set(targets) or any(tensors[name].shape != targets[name].shape for name in targets):
        raise UserError(
            f"{str(path)!r} holds another model than the config asks for; use another output or the config that made it"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        hashes = read_json(folder / _MANIFEST, "checkpoint manifest")
    except UserError as error:
        return str(error)
    for name in (_MODEL, _OPTIMIZER, _STATE):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != hashes.get(name):
            return f"{name} differs from its sha256"
    return None


def _model_tensors(model: nn.Module, *, clone: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by name, each shared tensor once (``named_parameters`` drops tied copies)."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().cpu().contiguous() if clone else tensor for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}|{name}"] = value.detach().cpu().contiguous()
    return tensors


def _load_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    try:
        tensors = load_file(checkpoint.folder / _OPTIMIZER)
    except SafetensorError as error:  # the hash was right, so this is not damage but another format
        raise UserError(f"{checkpoint.folder.name}/{_OPTIMIZER} cannot be read: {error}") from error
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition("|")
        if name not in parameters:
            raise UserError(
                f"{checkpoint.folder.name}/{_OPTIMIZER} has moments of {name!r}, which the model lacks; "
                "use the config that made it"
            )
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value.to(parameter.device)
