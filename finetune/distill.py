"""Distillation while finetuning, for the methods that have it: BiBERT, BiT, TernaryBERT, BinaryBERT.

BiPFT's finetuning has no teacher; nothing here is on its path. The terms are those of bitbert.model.distillation,
over text only: the published losses count padding too, whose share depends on how rows are batched.
"""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitbert.config import FrozenConfig
from bitbert.errors import UserError
from bitbert.model.distillation import (
    attention_scores,
    direction_matching,
    hidden_state_mse,
    similarity,
    soft_cross_entropy,
    teacher_layers,
)
from bitbert.model.pairs import compares_texts, split_pairs
from bitbert.model.taps import Projections, ProjectionTap

Weight = Annotated[float, Field(ge=0)]


class DistillationConfig(FrozenConfig):
    """Weights of the terms; 0 leaves a term out. By default BiT's."""

    logits: Annotated[float, Field(ge=0, description="soft cross-entropy; squared difference for regression")] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    hidden_states: Weight = 1.0
    hidden_distance: Annotated[
        Literal["squares", "directions"],
        Field(description="sum of mean squared differences (BiT), or of direction mismatches (BiBERT)"),
    ] = "squares"
    projections: Annotated[
        float, Field(ge=0, description="direction matching of the patterns F F^T of queries, keys and values (BiBERT)")
    ] = 0.0
    attention_scores: Annotated[
        float, Field(ge=0, description="mean squared difference of Q K^T / sqrt(d), before quantization (TernaryBERT)")
    ] = 0.0
    labels: Annotated[float, Field(ge=0, description="the task's own loss; left out for regression, as in BiBERT")] = (
        0.0
    )

    @model_validator(mode="after")
    def _asks_the_teacher(self) -> Self:
        if not any((self.logits, self.hidden_states, self.projections, self.attention_scores)):
            raise ValueError(
                "no term has a weight that asks the teacher; give one, e.g. logits: 1, or leave teacher out"
            )
        return self


class Distillation:
    """The loss of a student with a teacher of the same task: callable as the training loop's ``Loss``.

    Args:
        teacher: a sequence classifier, full-precision or binary; put into eval mode and never trained.

    Raises:
        UserError: the first call finds a student whose width, layers or answers do not fit.
    """

    def __init__(self, teacher: PreTrainedModel, config: DistillationConfig) -> None:
        self._teacher: Any = teacher.eval().requires_grad_(False)
        self._config = config
        self._tap = ProjectionTap(teacher)

    def __call__(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """(student, batch with labels) -> the weighted sum of the terms, a scalar."""
        return torch.stack([weight * term for weight, term in self.terms(model, batch)]).sum()

    def terms(self, model: Any, batch: dict[str, Tensor]) -> list[tuple[float, Tensor]]:
        """(weight, value) of every term whose weight is not 0."""
        config = self._config
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        self._teacher.to(model.device)
        with torch.no_grad(), self._tap:
            target = self._teacher(**inputs, output_hidden_states=True)
        theirs = self._tap.take()
        with ProjectionTap(model) as tap:
            output = model(**inputs, output_hidden_states=True)
        ours, mask = tap.take(), batch["attention_mask"]
        if compares_texts(model.config):  # the states are those of the texts, and so is what counts of them
            _, mask = split_pairs(batch["input_ids"], mask, batch["token_type_ids"])
        is_regression = output.logits.shape[-1] == 1
        heads = (model.config.num_attention_heads, self._teacher.config.num_attention_heads)
        self._check(output, target, heads)
        layers, states = teacher_layers(len(ours), len(theirs))
        theirs = [theirs[layer] for layer in layers]
        hidden = (output.hidden_states, [target.hidden_states[state] for state in states], mask)

        found: list[tuple[float, Tensor]] = []
        if config.logits and is_regression:
            found.append((config.logits, nn.functional.mse_loss(output.logits, target.logits)))
        elif config.logits:
            found.append((config.logits, soft_cross_entropy(output.logits, target.logits, config.temperature)))
        if config.hidden_states:
            distance = hidden_state_mse if config.hidden_distance == "squares" else direction_matching
            found.append((config.hidden_states, distance(*hidden)))
        if config.projections:
            found.append((config.projections, _projection_mismatch(ours, theirs, heads, mask)))
        if config.attention_scores:
            student, teacher = _scores(ours, heads[0]), _scores(theirs, heads[1])
            found.append((config.attention_scores, hidden_state_mse(student, teacher, mask)))
        if config.labels and not is_regression:
            found.append((config.labels, nn.functional.cross_entropy(output.logits, batch["labels"])))
        return found

    def _check(self, output: Any, target: Any, heads: tuple[int, int]) -> None:
        config, counts = self._config, (len(output.hidden_states) - 1, len(target.hidden_states) - 1)
        problems = {
            f"{target.logits.shape[-1]} answers for the student's {output.logits.shape[-1]}": (
                output.logits.shape != target.logits.shape
            ),
            f"{counts[1]} layers, which is no multiple of the student's {counts[0]}": counts[1] % counts[0] > 0,
            f"states of {target.hidden_states[0].shape[-1]} for the student's {output.hidden_states[0].shape[-1]}": (
                config.hidden_states > 0 and output.hidden_states[0].shape != target.hidden_states[0].shape
            ),
            f"{heads[1]} heads for the student's {heads[0]}": (
                config.projections + config.attention_scores > 0 and heads[0] != heads[1]
            ),
        }
        for problem, holds in problems.items():
            if holds:
                raise UserError(f"the teacher has {problem}; finetune a teacher of this shape on this task")


def _projection_mismatch(
    ours: list[Projections], theirs: list[Projections], heads: tuple[int, int], mask: Tensor
) -> Tensor:
    terms = []
    for name in ("query", "key", "value"):
        student, teacher = (
            [similarity(getattr(layer, name), count) for layer in side]
            for side, count in zip((ours, theirs), heads, strict=True)
        )
        terms.append(direction_matching(student, teacher, mask))
    return torch.stack(terms).sum()


def _scores(layers: list[Projections], num_heads: int) -> list[Tensor]:
    return [attention_scores(layer.query, layer.key, num_heads) for layer in layers]
