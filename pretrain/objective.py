"""The pretraining loss: MLM + NSP on the labels, hidden states and logits from the teacher.

    L = w_mlm CE(mlm) + w_nsp CE(nsp) + w_hidden L_hidden + w_nsp_distillation L_nsp + w_mlm_distillation L_mlm
        + w_sentence L_sentence + w_query_relation L_Q + w_key_relation L_K + w_value_relation L_V

Published (arXiv 2312.08937): the first four terms with weight 1. Each term is a sum over this micro-batch divided
by the count of the whole global batch, so the loss does not depend on how the batch is laid over ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitbert.model.fused import weighted_squares
from bitbert.model.precision import products_as_they_are
from bitbert.model.taps import ProjectionTap

from .config import RELATIONS, HiddenUnits, LossSection
from .data import Batch
from .relations import relation_terms
from .teacher import Teacher, TeacherOutput

TERMS = (
    "mlm",
    "nsp",
    "hidden",
    "sentence",
    "nsp_distillation",
    "mlm_distillation",
    *(f"{kind}_relation" for kind in RELATIONS),
)


@dataclass(frozen=True)
class GlobalCounts:
    """What the terms are averaged over: masked tokens, text tokens and rows of the whole global batch."""

    masked: float
    tokens: float
    rows: float


class Objective:
    """Student and teacher on one micro-batch, and all terms of the loss between them.

    Args:
        student: the module whose projections the relation terms read; ``engine`` runs it.
    """

    def __init__(self, student: nn.Module, teacher: Teacher, config: LossSection) -> None:
        self.teacher, self.config = teacher, config
        self._tap = ProjectionTap(student, config.relation_layers if config.relations else ())

    def __call__(self, engine: Any, batch: Batch, counts: GlobalCounts) -> dict[str, Tensor]:
        """Run ``engine`` (the student, alone or wrapped) and the teacher; this micro-batch's share of each term."""
        with self._tap:
            output = engine(**batch.inputs(), masked_positions=batch.masked_positions, output_hidden_states=True)
        target = self.teacher(batch)
        terms = pretraining_terms(output, target, batch, counts, self.config)
        if self.config.relations:
            terms |= relation_terms(
                self._tap.take(),
                target.projections,
                batch.attention_mask,
                num_heads=self.config.relation_heads or self.teacher.config.num_attention_heads,
                num_tokens=counts.tokens,
                kinds=self.config.relations,
            )
        return terms


def pretraining_terms(
    student: Any, teacher: TeacherOutput, batch: Batch, counts: GlobalCounts, config: LossSection
) -> dict[str, Tensor]:
    """This micro-batch's share of each weighted-in term on outputs, scalars, before weighting.

    Args:
        student: ``PreTrainingOutput`` computed with ``masked_positions`` and ``output_hidden_states``.
    """
    terms: dict[str, Tensor] = {}
    cross_entropy = nn.functional.cross_entropy
    prediction_logits, nsp_logits = student.prediction_logits.float(), student.seq_relationship_logits.float()
    if config.mlm:
        terms["mlm"] = cross_entropy(prediction_logits, batch.labels, reduction="sum") / counts.masked
    if config.nsp:
        terms["nsp"] = cross_entropy(nsp_logits, batch.next_sentence_label, reduction="sum") / counts.rows
    if config.hidden:
        terms["hidden"] = hidden_state_loss(
            student.hidden_states, teacher.hidden_states, batch.attention_mask, counts.tokens, config.hidden_units
        )
    if config.sentence:
        last = (student.hidden_states[-1], teacher.hidden_states[-1])
        terms["sentence"] = sentence_loss(*last, batch.attention_mask, batch.token_type_ids) / counts.rows
    if config.nsp_distillation:
        assert teacher.nsp_logits is not None  # Teacher.load refuses a teacher without the head
        # Published as a mean over rows and over the two classes.
        terms["nsp_distillation"] = soft_cross_entropy(nsp_logits, teacher.nsp_logits) / (2 * counts.rows)
    if config.mlm_distillation:
        assert teacher.mlm_logits is not None
        soft = soft_cross_entropy(prediction_logits, teacher.mlm_logits, config.temperature)
        terms["mlm_distillation"] = soft * config.temperature**2 / counts.masked
    return terms


def weighted_sum(terms: dict[str, Tensor], config: LossSection) -> Tensor:
    """Sum of the terms with their weights."""
    return torch.stack([term * getattr(config, name) for name, term in terms.items()]).sum()


def hidden_state_loss(
    student: tuple[Tensor, ...],
    teacher: tuple[Tensor, ...],
    attention_mask: Tensor,
    num_tokens: float,
    units: HiddenUnits = "absolute",
) -> Tensor:
    """(1 / (L + 1)) sum over the embedding output and L layers of the mean squared difference of the states.

    Args:
        student, teacher: L + 1 tensors (batch, positions, hidden).
        attention_mask: (batch, positions); positions with 0 (padding) do not count. The published loss counts them.
        num_tokens: what to average over, besides the hidden width.
        units: ``teacher_variance`` divides each token's squared differences by the variance of the teacher's state of
            that token over its hidden units; a token's own, so the loss does not depend on the layout of the batch.
    """
    mask = attention_mask.unsqueeze(-1).to(student[0].dtype)
    squares = []
    for ours, theirs in zip(student, teacher, strict=True):
        weights = mask if units == "absolute" else mask / theirs.var(-1, correction=0, keepdim=True)
        squares.append(weighted_squares(ours, theirs, weights))
    return torch.stack(squares).sum() / (len(student) * num_tokens * student[0].shape[-1])


def sentence_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
    """Sum over rows of the mean over a row's texts of 1 - cos(u, v): u the mean of the student's states over the text's
    tokens, v of the teacher's.

    Mean states are what a sentence encoder is asked for. An error that all tokens of a text share weighs little beside
    their own in :func:`hidden_state_loss`, and is all that is left in the mean.

    Args:
        student, teacher: (batch, positions, hidden), the last layer's.
        attention_mask, token_type_ids: (batch, positions); a row has a text of type 0, of type 1, or both.
    """
    types = torch.stack([1 - token_type_ids, token_type_ids], dim=1) * attention_mask[:, None]
    texts = types.to(student.dtype)  # (batch, 2, positions)
    with products_as_they_are(student.device):
        u, v = texts @ student, texts @ teacher.to(student.dtype)  # sums have the means' directions
    present = texts.amax(dim=-1)
    distances = (1 - nn.functional.cosine_similarity(u, v, dim=-1)) * present
    return (distances.sum(dim=-1) / present.sum(dim=-1)).sum()


def soft_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over rows of -softmax(target / t) . log_softmax(logits / t); both (rows, classes)."""
    return -(torch.softmax(target_logits / temperature, dim=-1) * torch.log_softmax(logits / temperature, dim=-1)).sum()
