"""Distillation while finetuning: each term against its formula, and students that do not fit."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bitbert.errors import UserError
from bitbert.finetune.distill import Distillation, DistillationConfig
from bitbert.model.distillation import direction_matching, hidden_state_mse, soft_cross_entropy
from tests.conftest import TINY_SHAPE, tiny_model

OFF = dict.fromkeys(("logits", "hidden_states", "projections", "attention_scores", "labels"), 0.0)
VOCABULARY = 90


def bert(**fields: object) -> BertForSequenceClassification:
    torch.manual_seed(3)
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **TINY_SHAPE | fields))


def student(**fields: object) -> torch.nn.Module:
    return tiny_model("bibert", "BitBertForSequenceClassification", vocab_size=VOCABULARY, **fields)


def batch(labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[0, 5:] = 0
    ids = torch.randint(5, VOCABULARY, (4, 9)) * mask
    default = torch.tensor([0, 1, 1, 0])
    return {"input_ids": ids, "attention_mask": mask, "labels": default if labels is None else labels}


def test_each_term_is_its_formula_and_the_teacher_never_learns() -> None:
    teacher, model, rows = bert(), student(), batch()
    inputs = {name: tensor for name, tensor in rows.items() if name != "labels"}
    with torch.no_grad():
        ours, theirs = (one.eval()(**inputs, output_hidden_states=True) for one in (model, teacher))
    mask = rows["attention_mask"]
    expected = {
        "logits": soft_cross_entropy(ours.logits, theirs.logits),
        "hidden_states": hidden_state_mse(ours.hidden_states, theirs.hidden_states, mask),
    }
    for name, value in expected.items():
        found = Distillation(teacher, DistillationConfig(**OFF | {name: 2.0}))(model, rows)
        assert found.item() == pytest.approx(2 * value.item(), rel=1e-5), name
    label_loss = torch.nn.functional.cross_entropy(ours.logits, rows["labels"])
    found = Distillation(teacher, DistillationConfig(**OFF | {"logits": 1.0, "labels": 2.0}))(model, rows)
    assert found.item() == pytest.approx((expected["logits"] + 2 * label_loss).item(), rel=1e-5)
    directions = DistillationConfig(**OFF | {"hidden_states": 1.0}, hidden_distance="directions")
    found = Distillation(teacher, directions)(model, rows)
    assert found.item() == pytest.approx(direction_matching(ours.hidden_states, theirs.hidden_states, mask).item())

    everything = DistillationConfig(projections=1.0, attention_scores=1.0, labels=0.5)
    distillation = Distillation(teacher, everything)
    assert len(distillation.terms(model, rows)) == 5
    distillation(model, rows).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert not teacher.training


def test_a_full_precision_student_of_itself_has_no_loss_but_the_logits_entropy() -> None:
    teacher, model = bert(), bert().eval()
    config = DistillationConfig(**OFF | {"hidden_states": 1.0, "projections": 1.0, "attention_scores": 1.0})
    assert Distillation(teacher, config)(model, batch()).item() == pytest.approx(0, abs=1e-4)


def test_regression_follows_the_teachers_score_and_has_no_label_term() -> None:
    teacher, model = bert(num_labels=1), student(num_labels=1)
    rows = batch(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    terms = Distillation(teacher, DistillationConfig(hidden_states=0.0, labels=0.5)).terms(model, rows)
    inputs = {name: tensor for name, tensor in rows.items() if name != "labels"}
    with torch.no_grad():
        expected = torch.nn.functional.mse_loss(model(**inputs).logits, teacher(**inputs).logits)
    assert [weight for weight, _ in terms] == [1.0]
    assert terms[0][1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_shallow_student_follows_a_deep_teacher() -> None:
    deep = bert(num_hidden_layers=4)
    config = DistillationConfig(projections=1.0)
    assert torch.isfinite(Distillation(deep, config)(student(), batch()))


@pytest.mark.parametrize(
    ("teacher", "config", "message"),
    [
        ({"num_labels": 3}, {}, "has 3 answers for the student's 2"),
        ({"num_hidden_layers": 3}, {}, "has 3 layers, which is no multiple of the student's 2"),
        ({"hidden_size": 64}, {}, "has states of 64 for the student's 32"),
        ({"num_attention_heads": 2}, {"projections": 1.0}, "has 2 heads for the student's 4"),
    ],
)
def test_students_that_do_not_fit_are_refused(teacher: dict, config: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Distillation(bert(**teacher), DistillationConfig(**config))(student(), batch())


def test_a_teacher_that_nothing_asks_is_refused() -> None:
    with pytest.raises(ValueError, match="no term has a weight that asks the teacher"):
        DistillationConfig(**OFF | {"labels": 1.0})
