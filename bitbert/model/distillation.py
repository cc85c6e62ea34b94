"""Distillation losses of BiT and BiBERT between a student and a teacher that was finetuned on the same task.

BiPFT's finetuning has no teacher and uses none of this. Each loss takes the ``attention_mask`` (batch, positions) that
says which positions count; without it padding counts too, as in the published losses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MASKED_SCORE = -100.0
"""Similarities up to this count as 0 when directions are compared, as BiBERT does with masked entries."""


def soft_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over rows and classes of -softmax(target / t) log_softmax(logits / t) t^2; both (rows, classes).

    BiT and BiBERT average over the classes as well, at t = 1.
    """
    target = torch.softmax(target_logits / temperature, dim=-1)
    return -(target * torch.log_softmax(logits / temperature, dim=-1)).mean() * temperature**2


def hidden_state_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Sum over tensors of the mean squared difference (BiT's hidden-state loss); of states or of score matrices."""
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        squares, counted = (ours - theirs).square(), _counted(ours, mask)
        terms.append(squares.mean() if counted is None else (squares * counted).sum() / counted.expand_as(ours).sum())
    return torch.stack(terms).sum()


def direction_mismatch(student: Tensor, teacher: Tensor) -> Tensor:
    """|| x / |x| - y / |y| ||, norms over the whole batch tensor: BiBERT's distance between directions, a scalar."""
    return (student / student.norm() - teacher / teacher.norm()).norm()


def direction_matching(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Sum of :func:`direction_mismatch` over pairs of tensors of equal shape; very negative entries count as 0."""
    terms = []
    for pair in zip(student, teacher, strict=True):
        visible = []
        for x in pair:
            counted = _counted(x, mask)
            x = torch.where(x <= MASKED_SCORE, torch.zeros_like(x), x)
            visible.append(x if counted is None else x * counted)
        terms.append(direction_mismatch(*visible))
    return torch.stack(terms).sum()


def similarity(projection: Tensor, num_heads: int) -> Tensor:
    """Similarity pattern F F^T / sqrt(d) of a projection, a head (BiBERT's direction-matching distillation).

    Args:
        projection: (batch, positions, width), before binarization.

    Returns:
        (batch, heads, positions, positions).
    """
    return attention_scores(projection, projection, num_heads)


def attention_scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """Q K^T / sqrt(d), a head: (batch, positions, width) each -> (batch, heads, positions, positions)."""
    queries, keys = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key))
    return queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5


def teacher_layers(num_student_layers: int, num_teacher_layers: int) -> tuple[list[int], list[int]]:
    """(layers, states) of the teacher that a student with fewer layers follows.

    Student layer i takes queries, keys and values of teacher layer i r + r - 1 and state i that of state i r, with
    r = teacher's layers / student's (TinyBERT's and BiBERT's map).
    """
    ratio = num_teacher_layers // num_student_layers
    layers = [index * ratio + ratio - 1 for index in range(num_student_layers)]
    return layers, [index * ratio for index in range(num_student_layers + 1)]


def _counted(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """1 where an entry of states (batch, positions, width) or scores (batch, heads, positions, positions) counts."""
    if mask is None:
        return None
    rows = mask.to(x.dtype)
    return rows[:, :, None] if x.dim() == 3 else rows[:, None, :, None] * rows[:, None, None, :]
