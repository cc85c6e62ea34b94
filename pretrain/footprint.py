"""Bytes that autograd keeps for a backward pass, counted on tensors without data: no memory, no arithmetic."""

from typing import Any

import torch
from torch import Tensor, nn

from bitbert.model import BitBertConfig, BitBertForPreTraining

from .config import LossSection
from .data import Batch
from .objective import GlobalCounts, Objective
from .teacher import TeacherOutput


class _SilentTeacher:
    """Gives tensors of a teacher's shapes."""

    def __init__(self, config: BitBertConfig, loss: LossSection) -> None:
        self.config, self._loss = config, loss

    def __call__(self, batch: Batch) -> TeacherOutput:
        rows, positions = batch.input_ids.shape
        state = (rows, positions, self.config.hidden_size)
        masked = (len(batch.labels), self.config.vocab_size)
        return TeacherOutput(
            tuple(torch.empty(state, device="meta") for _ in range(self.config.num_hidden_layers + 1)),
            torch.empty(rows, 2, device="meta"),
            torch.empty(masked, device="meta") if self._loss.mlm_distillation else None,
        )


def activation_bytes(
    config: BitBertConfig, loss: LossSection, *, rows: int, positions: int, mask_probability: float
) -> int:
    """Bytes of all distinct tensors that one micro-batch's forward pass saves for its backward pass.

    Weights do not count; the teacher's states that the loss refers to do. Relation terms are not counted. It is what
    the model's torch operations keep in float32; the native kernels and autocast keep less.

    Args:
        rows: micro-batch size. positions: tokens of a row, padding included.
    """
    with torch.device("meta"):
        student = BitBertForPreTraining(config).train()
        ids = torch.zeros(rows, positions, dtype=torch.int64)
        labels = torch.zeros(max(1, round(rows * positions * mask_probability)), dtype=torch.int64)
    batch = Batch(ids, torch.ones_like(ids), ids, labels, labels, ids[:, 0])
    ignored = loss.model_copy(update={f"{kind}_relation": 0.0 for kind in loss.relations})
    teacher: Any = _SilentTeacher(config, ignored)
    weights = {_key(tensor) for tensor in (*student.parameters(), *student.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _key(tensor) not in weights:
            saved.setdefault(_key(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = Objective(student, teacher, ignored)(student, batch, GlobalCounts(1.0, 1.0, 1.0))
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del terms  # its graph held every tensor until here, so that no address was used twice
    return total


def _key(tensor: Tensor | nn.Parameter) -> int:
    return tensor.untyped_storage()._cdata
