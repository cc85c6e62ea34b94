"""Relation distillation: how positions relate to each other in the teacher's queries, keys and values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitbert.model.taps import Projections


def relation_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor, *, num_heads: int) -> Tensor:
    """Kullback-Leibler divergence of the self-relations of one projection (MiniLMv2, arXiv 2012.15828).

    A projection A is cut into relation heads of d_r channels. With R(A) = softmax(A A^T / sqrt(d_r)) over text
    positions, the loss is the sum over rows, text positions and heads of KL(R(teacher) || R(student)). The number of
    relation heads is free of the model's, so student and teacher may differ in width. Padding is left out on both
    sides: it takes no share of a softmax, and its rows do not count. The result is 0 where relations are equal.

    Args:
        student, teacher: (batch, positions, hidden); hidden sizes may differ and are multiples of ``num_heads``.
        attention_mask: (batch, positions), 1 at text and 0 at padding.

    Returns:
        a scalar: the sum, not yet divided by the number of text positions and heads.
    """
    ours = _log_relations(student, attention_mask, num_heads)
    theirs = _log_relations(teacher, attention_mask, num_heads)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)  # (batch, heads, positions)
    return (divergence * attention_mask.unsqueeze(1).to(divergence.dtype)).sum()


def relation_terms(
    student: Sequence[Projections],
    teacher: Sequence[Projections],
    attention_mask: Tensor,
    *,
    num_heads: int,
    num_tokens: Tensor | float,
    kinds: tuple[str, ...],
) -> dict[str, Tensor]:
    """``{kind}_relation`` for each of ``kinds``: the mean of :func:`relation_loss` over layers, heads and text.

    Args:
        student, teacher: the chosen layers' projections, in the same order.
        num_tokens: text tokens of the whole global batch.
    """
    terms = {}
    for kind in kinds:
        losses = [
            relation_loss(getattr(ours, kind), getattr(theirs, kind), attention_mask, num_heads=num_heads)
            for ours, theirs in zip(student, teacher, strict=True)
        ]
        terms[f"{kind}_relation"] = torch.stack(losses).sum() / (len(losses) * num_heads * num_tokens)
    return terms


def _log_relations(projection: Tensor, attention_mask: Tensor, num_heads: int) -> Tensor:
    """(batch, positions, hidden) -> log R, (batch, heads, positions, positions), float32."""
    batch, positions, hidden = projection.shape
    heads = projection.view(batch, positions, num_heads, hidden // num_heads).transpose(1, 2)
    scores = (heads @ heads.transpose(-1, -2)).float() / (hidden // num_heads) ** 0.5
    # The lowest finite number, not -inf: padding keeps a probability of 0 and its log stays a number.
    padding = attention_mask[:, None, None, :] == 0
    return torch.log_softmax(scores.masked_fill(padding, torch.finfo(torch.float32).min), dim=-1)
