"""Relation distillation against a plain re-computation; padding; the config's layers and heads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitbert.errors import UserError
from bitbert.pretrain.config import LossSection
from bitbert.pretrain.data import Batch
from bitbert.pretrain.objective import GlobalCounts, Objective
from bitbert.pretrain.relations import relation_loss
from bitbert.pretrain.teacher import load_teacher
from tests.conftest import tiny_model

RELATIONS = LossSection(query_relation=1, key_relation=2, value_relation=3, relation_layers=(0, -1))


def tensors(seed: int, hidden: int = 8) -> torch.Tensor:
    return torch.randn(2, 5, hidden, generator=torch.Generator().manual_seed(seed))


def one_row(student: torch.Tensor, teacher: torch.Tensor, num_heads: int) -> float:
    """The loss of one row without padding, head by head and position by position."""
    total = 0.0
    for ours, theirs in zip(student.chunk(num_heads, -1), teacher.chunk(num_heads, -1), strict=True):
        q = torch.softmax(ours @ ours.T / ours.shape[-1] ** 0.5, -1)
        p = torch.softmax(theirs @ theirs.T / theirs.shape[-1] ** 0.5, -1)
        total += sum(float(p[i, j] * torch.log(p[i, j] / q[i, j])) for i in range(len(p)) for j in range(len(p)))
    return total


def test_the_loss_is_its_formula_over_text_alone() -> None:
    """Widths of student and teacher differ; the second row has two positions of padding."""
    student, teacher, mask = tensors(1), tensors(2, hidden=12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = one_row(student[0], teacher[0], 4) + one_row(student[1, :3], teacher[1, :3], 4)
    assert relation_loss(student, teacher, mask, num_heads=4).item() == pytest.approx(expected, rel=1e-5)
    student[1, 3:] += 100
    teacher[1, 3:] -= 100
    assert relation_loss(student, teacher, mask, num_heads=4).item() == pytest.approx(expected, rel=1e-5)


def test_equal_relations_have_no_loss_and_no_gradient() -> None:
    teacher, mask = tensors(1), torch.ones(2, 5, dtype=torch.int64)
    student = teacher.clone().requires_grad_()
    loss = relation_loss(student, teacher, mask, num_heads=2)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def example(teacher_folder: Path, tokenizer, loss: LossSection):
    teacher = load_teacher(str(teacher_folder), loss, tokenizer)
    student = tiny_model("bitbert", vocab_size=tokenizer.vocab_size).train(False)
    ids = torch.randint(5, tokenizer.vocab_size, (4, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    zeros = torch.zeros_like(ids)
    batch = Batch(ids, mask, zeros, torch.tensor([1, 8]), ids.flatten()[[1, 8]], zeros[:, 0])
    return Objective(student, teacher, loss), student, batch


def test_terms_reach_the_chosen_projections_and_add_up_over_micro_batches(tiny_teacher: Path, tiny_tokenizer) -> None:
    objective, student, batch = example(tiny_teacher, tiny_tokenizer, RELATIONS)
    counts = GlobalCounts(2, batch.num_tokens, 4)
    whole = objective(student, batch, counts)
    for kind in ("query", "key", "value"):
        assert whole[f"{kind}_relation"].item() > 0
        student.zero_grad()
        whole[f"{kind}_relation"].backward(retain_graph=True)
        for layer in (0, 1):
            gradient = getattr(student.bitbert.layers[layer].attention, kind).weight.grad
            assert gradient.abs().sum() > 0, (kind, layer)
    parts = [
        objective(
            student,
            replace(
                batch,
                **{name: getattr(batch, name)[rows] for name in ("input_ids", "attention_mask", "token_type_ids")},
                next_sentence_label=batch.next_sentence_label[rows],
                masked_positions=torch.tensor([1]),
                labels=batch.labels[:1],
            ),
            counts,
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for kind in ("query", "key", "value"):
        name = f"{kind}_relation"
        assert sum(part[name].item() for part in parts) == pytest.approx(whole[name].item(), rel=1e-4)


def test_only_weighted_relations_are_computed(tiny_teacher: Path, tiny_tokenizer) -> None:
    objective, student, batch = example(tiny_teacher, tiny_tokenizer, LossSection(value_relation=0.5))
    terms = objective(student, batch, GlobalCounts(2, batch.num_tokens, 4))
    assert {name for name in terms if name.endswith("_relation")} == {"value_relation"}
    without, student, batch = example(tiny_teacher, tiny_tokenizer, LossSection())
    assert not any(name.endswith("_relation") for name in without(student, batch, GlobalCounts(2, 22, 4)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relation_layers": (2,)}, "layer 2 does not exist: the model has 2 layers"),
        ({"relation_heads": 5}, "hidden size of 32, which 5 relation heads do not divide"),
    ],
)
def test_mistakes(tiny_teacher: Path, tiny_tokenizer, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_teacher(str(tiny_teacher), LossSection(value_relation=1, **fields), tiny_tokenizer)
