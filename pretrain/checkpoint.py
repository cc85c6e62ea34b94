"""Contract 2: training checkpoints that are whole, hashed and free of pickle.

A checkpoint is a folder ``checkpoints/step-00000100`` with model.safetensors (latent weights and buffers),
optimizer.safetensors (the optimizer's moments by parameter name), state.json and manifest.json (bytes and sha256 of
each file). It is written under a temporary name, flushed and renamed; then ``checkpoints/latest`` names it. Order of
data, masks and dropout are functions of the step, so no random state is stored, and a checkpoint depends neither on the
number of ranks nor on the ZeRO stage. docs/pretraining_faults.md says what is promised and how it is tested.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import (
    finish_publishing,
    make_folder,
    publish_folder,
    read_json,
    remove_folder,
    require_free_space,
    sha256_file,
    write_json_atomically,
    write_text_atomically,
)

from .manifest import find_damage, write_manifest
from .run_folder import STEP_PREFIX, checkpoint_folder, list_checkpoints, step_of
from .tensor_file import DTYPES, TensorSpec, file_bytes, write_tensors
from .zero import TrainingTensors

FORMAT = "bitbert-training"
FORMAT_VERSION = 2
LATEST = "latest"
_MODEL, _OPTIMIZER, _STATE = _FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_JSON_BYTES = 2**20  # more than state.json and manifest.json will ever take


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done: the next one has this number."""
        return int(self.state["step"])

    @property
    def model_file(self) -> Path:
        return self.folder / _MODEL


def save_checkpoint(
    root: Path, tensors: TrainingTensors, state: dict[str, Any], *, keep: int, milestone_every: int = 0
) -> None:
    """Write ``root/step-N`` (N from ``state["step"]``); collective, rank 0 writes.

    Afterwards there are the newest ``keep`` checkpoints up to N, the newest that is clean, those whose step is a
    multiple of ``milestone_every`` (0 = none), and none beyond N: those were damaged, or of a course that was rolled
    back.

    Raises:
        NoSpaceError: on rank 0; the disk cannot hold the checkpoint, nothing was written.
        OSError: on rank 0; writing failed. In both cases the older checkpoints are as they were.
    """
    files = {_MODEL: _aligned(tensors.model_specs()), _OPTIMIZER: _aligned(tensors.optimizer_specs())}
    gathered = {name: tensors.gather(specs) for name, specs in files.items()}
    try:
        if tensors.topology.is_main:
            make_folder(root)
            need = sum(map(file_bytes, files.values())) + _JSON_BYTES
            require_free_space(root, need, f"the checkpoint of step {state['step']}")
            folder = checkpoint_folder(root, state["step"])
            with publish_folder(folder, replace=True) as temporary:
                hashes = {name: write_tensors(temporary / name, specs, gathered[name]) for name, specs in files.items()}
                write_json_atomically(temporary / _STATE, {"format": FORMAT, "format_version": FORMAT_VERSION, **state})
                hashes[_STATE] = sha256_file(temporary / _STATE)
                write_manifest(temporary, hashes)
            write_text_atomically(root / LATEST, f"{folder.name}\n")
            _remove_old(root, state["step"], keep, milestone_every)
    finally:
        for rest in gathered.values():  # the other ranks send every tensor, whatever happened to rank 0's disk
            for _ in rest:
                pass


def is_clean(state: dict[str, Any]) -> bool:
    """Whether the updates before a checkpoint do not end in skipped ones: a rollback can go back to it."""
    return bool(state.get("non_finite", {}).get("in_a_row", 0) == 0)


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of one checkpoint of ``model`` with two moments a parameter, to within the JSON files."""
    weights = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    return weights + 2 * sum(each.numel() * each.element_size() for each in model.parameters()) + _JSON_BYTES


def remove_unfinished(root: Path) -> None:
    """Clear away what a kill during a save left behind; call it on one rank, before the first save."""
    for line in finish_publishing(root, f"{STEP_PREFIX}*"):
        log(f"checkpoints: {line}")


def newest_checkpoint(root: Path, accept: Callable[[dict[str, Any]], bool] = lambda state: True) -> Checkpoint | None:
    """The newest checkpoint that verifies and whose state ``accept`` takes; what is wrong with others goes to the log.

    Raises:
        UserError: there are or were checkpoints, and none verifies; or one has a format of another version.
    """
    folders = list_checkpoints(root)
    named = (root / LATEST).read_text(encoding="utf-8").strip() if (root / LATEST).is_file() else None
    if named is not None and named not in (folder.name for folder in folders):
        log(f"checkpoint {named}, the latest, is missing; trying the one before")
    verified = 0
    for folder in reversed(folders):
        problem = find_damage(folder, _FILES)
        if problem is not None:
            log(f"checkpoint {folder.name}: {problem}; trying the one before")
            continue
        verified += 1
        state = read_json(folder / _STATE, "checkpoint state")
        if state.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"checkpoint {folder.name} in {str(root)!r} has format version {state.get('format_version')}, wanted "
                f"{FORMAT_VERSION}; go on with the version of bitbert that wrote it, or choose another output=..."
            )
        if accept(state):
            return Checkpoint(folder, state)
    if not verified and (folders or named):
        raise UserError(
            f"none of the {len(folders)} checkpoints in {str(root)!r} verifies; copy one back, or remove the folder to "
            "start anew"
        )
    return None


def restore_moments(checkpoint: Checkpoint | None, tensors: TrainingTensors) -> None:
    """Put rank 0's ``checkpoint``'s moments into the optimizer; collective, None on ranks other than 0."""
    _restore(checkpoint, _OPTIMIZER, tensors)


def restore_weights(checkpoint: Checkpoint | None, tensors: TrainingTensors) -> None:
    """Put rank 0's ``checkpoint``'s weights into a model that trains; collective, None on ranks other than 0."""
    _restore(checkpoint, _MODEL, tensors)
    tensors.weights_were_set()


def load_model_weights(path: Path, model: nn.Module) -> None:
    """Load latent weights by exact names and shapes; tied copies follow.

    Raises:
        UserError: the file belongs to another model.
    """
    loaded = load_file(path)
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    if set(loaded) != set(targets) or any(loaded[name].shape != targets[name].shape for name in targets):
        raise UserError(
            f"{str(path)!r} holds another model than the config asks for; use another output or the config that made it"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(loaded[name])


def _restore(checkpoint: Checkpoint | None, name: str, tensors: TrainingTensors) -> None:
    """Rank 0 reads one tensor at a time and each rank keeps its part."""
    file = None if checkpoint is None else _open(checkpoint, name)
    contents = tensors.from_main(None if file is None else [_entry(file, key) for key in sorted(file.keys())])
    specs = [TensorSpec(key, DTYPES[dtype], tuple(shape)) for key, dtype, shape in contents]
    tensors.check(specs, name)
    tensors.start_moments(specs)
    for spec in specs:
        tensors.set(spec, None if file is None else file.get_tensor(spec.name))


def _open(checkpoint: Checkpoint, name: str) -> Any:
    try:
        return safe_open(checkpoint.folder / name, framework="pt")
    except SafetensorError as error:  # the hash was right, so this is not damage but another format
        raise UserError(f"{checkpoint.folder.name}/{name} cannot be read: {error}") from error


def _entry(file: Any, key: str) -> tuple[str, str, list[int]]:
    piece = file.get_slice(key)
    return key, piece.get_dtype(), piece.get_shape()


def _aligned(specs: list[TensorSpec]) -> list[TensorSpec]:
    """Wide elements first, so that none of them starts off its alignment."""
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def _remove_old(root: Path, step: int, keep: int, milestone_every: int) -> None:
    folders = list_checkpoints(root)
    up_to_now = [folder for folder in folders if step_of(folder) <= step]
    kept = up_to_now[-keep:]
    clean = next((folder for folder in reversed(up_to_now) if _is_clean_on_disk(folder)), None)
    if clean is not None:
        kept.append(clean)
    if milestone_every:
        kept += [folder for folder in up_to_now if step_of(folder) % milestone_every == 0]
    for folder in folders:
        if folder not in kept:
            remove_folder(folder)


def _is_clean_on_disk(folder: Path) -> bool:
    try:
        state = read_json(folder / _STATE, "checkpoint state")
    except UserError:  # damaged
        return False
    return isinstance(state, dict) and is_clean(state)
