"""A run's checkpoints, seen from the training loop: find, restore, save, roll back.

Rank 0 alone reads and writes files. What it finds or fails at is told to all ranks, so that they go on from the same
place or stop together.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from bitbert.distributed import Topology, log
from bitbert.errors import UserError
from bitbert.files import require_free_space

from .checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    is_clean,
    load_model_weights,
    newest_checkpoint,
    remove_unfinished,
    restore_moments,
    restore_weights,
    save_checkpoint,
)
from .guard import NonFiniteGuard, SaveFailures
from .ranks import share_json
from .run import Run, data_identity
from .run_folder import CHECKPOINTS, checkpoint_folder
from .zero import TrainingTensors


class CheckpointKeeper:
    """The checkpoints of ``run``.

    Attributes:
        saved_step: step of the newest checkpoint that this process wrote or went on from; None without one.
    """

    def __init__(self, run: Run, topology: Topology, device: torch.device) -> None:
        self.root = run.folder / CHECKPOINTS
        self.saved_step: int | None = None
        self._run, self._topology, self._device = run, topology, device
        self._found: Checkpoint | None = None
        self._failures = SaveFailures(run.config.failed_saves)

    def resume(self, student: nn.Module) -> dict[str, Any] | None:
        """Find the newest checkpoint and give rank 0's student its weights; returns its state, on all ranks.

        Raises:
            UserError: on all ranks; no checkpoint verifies, it is of another model or other data, or the disk has no
                room for the next one.
        """
        answer: dict[str, Any] = {}
        if self._topology.is_main:
            try:
                remove_unfinished(self.root)
                self._found = newest_checkpoint(self.root)
                if self._found is not None:
                    self._check_data(self._found)
                    load_model_weights(self._found.model_file, student)
                    log(f"resumed from {self._found.folder.name}")
                self._check_space(student)
                answer = {"state": self._found and self._found.state}
            except UserError as error:
                answer = {"error": str(error)}
        return self._shared(answer)

    def restore_moments(self, tensors: TrainingTensors) -> None:
        """Give the optimizer the moments of the checkpoint that :meth:`resume` found."""
        if self.saved_step is not None:
            restore_moments(self._found, tensors)
        self._found = None

    def save(
        self,
        tensors: TrainingTensors,
        step: int,
        *,
        evaluation: dict[str, float],
        evaluated_at: int | None,
        guard: NonFiniteGuard,
        must_succeed: bool = False,
        again: bool = False,
    ) -> None:
        """Write the checkpoint of ``step``, unless there already; training goes on without it where the disk fails.

        Raises:
            UserError: on all ranks; it failed, and it ``must_succeed`` or it is one too many in a row.
        """
        if self.saved_step == step and not again:
            return
        problem = None
        state = {
            "step": step,
            "data": data_identity(self._run),
            "world_size": self._topology.world_size,
            "zero_stage": self._run.config.zero_stage,
            "evaluation": evaluation,
            "evaluated_at": evaluated_at,
            "non_finite": guard.state(),
        }
        config = self._run.config
        try:
            save_checkpoint(
                self.root, tensors, state, keep=config.keep_checkpoints, milestone_every=config.milestone_every
            )
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"the checkpoint of step {step} could not be written ({error})"
        problem = share_json(problem, self._topology, self._device)
        if problem is None:
            self.saved_step = step
        line = self._failures.count(problem, must_succeed=must_succeed)
        if line is not None and self._topology.is_main:
            log(line)

    def roll_back(self, tensors: TrainingTensors, step: int, guard: NonFiniteGuard) -> dict[str, Any] | None:
        """Go back from ``step`` to the newest checkpoint that does not end in skipped updates; returns its state.

        The guard passes over the batches since then, and the checkpoint is written again with that in its state, so
        that a run killed right after goes on the same way. None where there is no such checkpoint.
        """
        answer: dict[str, Any] = {}
        if self._topology.is_main:
            try:
                self._found = newest_checkpoint(self.root, is_clean)
                answer = {"state": self._found and self._found.state}
            except UserError as error:
                answer = {"error": str(error)}
        state = self._shared(answer)
        if state is None:
            return None
        restore_weights(self._found, tensors)
        restore_moments(self._found, tensors)
        guard.roll_back(step, state["step"])
        self.save(
            tensors,
            state["step"],
            evaluation=state["evaluation"],
            evaluated_at=state.get("evaluated_at"),
            guard=guard,
            must_succeed=True,
            again=True,
        )
        return state

    def final_weights(self) -> dict[str, torch.Tensor]:
        """The weights of the newest checkpoint, by name; shared ones once."""
        assert self.saved_step is not None
        return load_file(checkpoint_folder(self.root, self.saved_step) / "model.safetensors")

    def _shared(self, answer: dict[str, Any]) -> dict[str, Any] | None:
        answer = share_json(answer, self._topology, self._device)
        if "error" in answer:
            raise UserError(answer["error"])
        state: dict[str, Any] | None = answer["state"]
        if state is not None:
            self.saved_step = state["step"]
        return state

    def _check_data(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state["data"] != data_identity(self._run):
            raise UserError(
                f"checkpoint {checkpoint.folder.name} was trained on other shards than "
                f"{self._run.config.data.train!r}; restore them, or choose another output=..."
            )

    def _check_space(self, student: nn.Module) -> None:
        folder: Path = self._run.folder
        require_free_space(folder, checkpoint_bytes(student), "the next checkpoint")
