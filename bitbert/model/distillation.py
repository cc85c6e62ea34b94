"""Distillation losses of BiT and BiBERT between a binary student and a full-precision task teacher.

BiPFT's finetuning has no teacher and uses none of this.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MASKED_SCORE = -100.0
"""Similarities up to this are set to 0 before directions are compared, as BiBERT does with masked entries."""


def soft_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over rows and classes of -softmax(target / t) log_softmax(logits / t) t^2; both (rows, classes).

    BiT and BiBERT average over the classes as well, at t = 1.
    """
    target = torch.softmax(target_logits / temperature, dim=-1)
    return -(target * torch.log_softmax(logits / temperature, dim=-1)).mean() * temperature**2


def hidden_state_mse(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over states of the mean squared difference, padding included (BiT); tensors (batch, positions, hidden)."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([nn.functional.mse_loss(ours, theirs) for ours, theirs in pairs]).sum()


def direction_mismatch(student: Tensor, teacher: Tensor) -> Tensor:
    """|| x / |x| - y / |y| ||, norms over the whole batch tensor: BiBERT's distance between directions, a scalar."""
    return (student / student.norm() - teacher / teacher.norm()).norm()


def similarity(projection: Tensor, num_heads: int) -> Tensor:
    """Similarity pattern F F^T / sqrt(d) of a projection, a head (BiBERT's direction-matching distillation).

    Args:
        projection: (batch, positions, width), before binarization.

    Returns:
        (batch, heads, positions, positions).
    """
    heads = projection.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5


def direction_matching(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum of :func:`direction_mismatch` over pairs of tensors of equal shape; very negative entries count as 0."""

    def visible(x: Tensor) -> Tensor:
        return torch.where(x <= MASKED_SCORE, torch.zeros_like(x), x)

    pairs = zip(student, teacher, strict=True)
    return torch.stack([direction_mismatch(visible(ours), visible(theirs)) for ours, theirs in pairs]).sum()


def teacher_layers(num_student_layers: int, num_teacher_layers: int) -> tuple[list[int], list[int]]:
    """(projections, states) of the teacher that a student with fewer layers follows.

    Student layer i takes queries, keys and values of teacher layer i r + r - 1 and state i that of state i r, with
    r = teacher's layers / student's (TinyBERT's and BiBERT's map).
    """
    ratio = num_teacher_layers // num_student_layers
    projections = [index * ratio + ratio - 1 for index in range(num_student_layers)]
    return projections, [index * ratio for index in range(num_student_layers + 1)]
