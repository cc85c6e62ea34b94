"""Loss terms against their formulas; sums that do not depend on the layout of the batch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bitbert.errors import UserError
from bitbert.pretrain.config import RELATIONS, LossSection
from bitbert.pretrain.data import Batch
from bitbert.pretrain.objective import (
    TERMS,
    GlobalCounts,
    hidden_state_loss,
    pretraining_terms,
    sentence_loss,
    soft_cross_entropy,
    weighted_sum,
)
from bitbert.pretrain.teacher import TeacherOutput, load_teacher
from bitbert.tokenizer import load_tokenizer
from tests.conftest import BERT_DAMAGE, MINILM

torch.manual_seed(0)
LOSS = LossSection(mlm=1, nsp=2, hidden=3, nsp_distillation=4, mlm_distillation=5, temperature=2, sentence=6)


def example(rows: int = 4) -> tuple[SimpleNamespace, TeacherOutput, Batch]:
    torch.manual_seed(1)
    mask = torch.ones(rows, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    positions = torch.arange(rows) * 6 + 1
    states = [tuple(torch.randn(rows, 6, 8) for _ in range(3)) for _ in range(2)]
    student = SimpleNamespace(
        prediction_logits=torch.randn(rows, 11),
        seq_relationship_logits=torch.randn(rows, 2),
        hidden_states=states[0],
    )
    teacher = TeacherOutput(states[1], torch.randn(rows, 2), torch.randn(rows, 11))
    types = torch.zeros_like(mask)
    types[0, 2:] = types[1, 3:4] = types[2, :] = 1  # rows of two texts, and of one of either type
    batch = Batch(
        torch.zeros_like(mask),
        mask,
        types,
        positions,
        torch.randint(11, (rows,)),
        torch.randint(2, (rows,)),
    )
    return student, teacher, batch


def test_terms_equal_their_formulas() -> None:
    student, teacher, batch = example()
    terms = pretraining_terms(student, teacher, batch, GlobalCounts(4, batch.num_tokens, 4), LOSS)
    assert {*terms, *(f"{kind}_relation" for kind in RELATIONS)} == set(TERMS)
    functional = torch.nn.functional
    text = batch.attention_mask.bool()
    expected = {
        "mlm": functional.cross_entropy(student.prediction_logits, batch.labels),
        "nsp": functional.cross_entropy(student.seq_relationship_logits, batch.next_sentence_label),
        "hidden": torch.stack(
            [
                functional.mse_loss(a[text], b[text])
                for a, b in zip(student.hidden_states, teacher.hidden_states, strict=True)
            ]
        ).mean(),
        "nsp_distillation": -(teacher.nsp_logits.softmax(-1) * student.seq_relationship_logits.log_softmax(-1)).mean(),
        "mlm_distillation": 4
        * -((teacher.mlm_logits / 2).softmax(-1) * (student.prediction_logits / 2).log_softmax(-1)).sum(-1).mean(),
    }
    texts = [[(0, 2), (2, 6)], [(0, 3), (3, 4)], [(0, 6)], [(0, 6)]]
    last = (student.hidden_states[-1], teacher.hidden_states[-1])
    cosines = [
        [functional.cosine_similarity(*(side[row, begin:end].mean(0) for side in last), dim=0) for begin, end in found]
        for row, found in enumerate(texts)
    ]
    expected["sentence"] = torch.stack([1 - torch.stack(found).mean() for found in cosines]).mean()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name
    weights = {"mlm": 1, "nsp": 2, "hidden": 3, "nsp_distillation": 4, "mlm_distillation": 5, "sentence": 6}
    assert weighted_sum(terms, LOSS).item() == pytest.approx(
        sum(weights[name] * value.item() for name, value in expected.items()), rel=1e-5
    )


def test_a_text_that_is_not_there_has_no_gradient_and_rows_add_up() -> None:
    student, teacher, batch = example()
    states = student.hidden_states[-1].requires_grad_()
    inputs = (teacher.hidden_states[-1], batch.attention_mask, batch.token_type_ids)
    whole = sentence_loss(states, *inputs)
    (gradient,) = torch.autograd.grad(whole, states)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(-1) > 0).equal(batch.attention_mask.bool())
    alone = [sentence_loss(states[row : row + 1], *(x[row : row + 1] for x in inputs)) for row in range(4)]
    assert torch.stack(alone).sum().item() == pytest.approx(whole.item(), rel=1e-5)
    assert sentence_loss(3 * inputs[0], *inputs).item() == pytest.approx(0, abs=1e-5)  # directions alone count


def test_hidden_states_in_units_of_the_teachers_variance() -> None:
    student, teacher, batch = example()
    text = batch.attention_mask.bool()
    shares = [
        (ours - theirs)[text].square().mean(-1) / theirs[text].var(-1, correction=0)
        for ours, theirs in zip(student.hidden_states, teacher.hidden_states, strict=True)
    ]
    loss = LossSection(mlm=0, nsp=0, nsp_distillation=0, hidden_units="teacher_variance")
    terms = pretraining_terms(student, teacher, batch, GlobalCounts(4, batch.num_tokens, 4), loss)
    assert terms["hidden"].item() == pytest.approx(torch.stack(shares).mean().item(), rel=1e-5)
    louder = [tuple(3 * state for state in model.hidden_states) for model in (student, teacher)]
    again = hidden_state_loss(*louder, batch.attention_mask, batch.num_tokens, "teacher_variance")
    assert again.item() == pytest.approx(terms["hidden"].item(), rel=1e-5)


def test_terms_with_weight_zero_are_not_computed() -> None:
    student, teacher, batch = example()
    without_heads = TeacherOutput(teacher.hidden_states, None, None)
    loss = LossSection(nsp_distillation=0, nsp=0)
    assert set(pretraining_terms(student, without_heads, batch, GlobalCounts(4, 22, 4), loss)) == {
        "mlm",
        "hidden",
    }


def test_padding_does_not_count() -> None:
    student, teacher, batch = example()
    before = hidden_state_loss(student.hidden_states, teacher.hidden_states, batch.attention_mask, 22)
    student.hidden_states[2][1, 5] += 100
    assert hidden_state_loss(student.hidden_states, teacher.hidden_states, batch.attention_mask, 22) == before


def test_soft_cross_entropy_is_least_at_the_target() -> None:
    target = torch.randn(3, 5)
    assert soft_cross_entropy(target, target) < soft_cross_entropy(target + torch.randn(3, 5), target)


def test_teacher_is_frozen_in_eval_mode_with_the_heads_the_loss_needs(tiny_teacher: Path, tiny_tokenizer) -> None:
    teacher = load_teacher(str(tiny_teacher), LossSection(mlm_distillation=1), tiny_tokenizer)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    _, _, batch = example()
    output = teacher(batch)
    assert (output.nsp_logits.shape, output.mlm_logits.shape) == ((4, 2), (4, tiny_tokenizer.vocab_size))
    bare = load_teacher(str(tiny_teacher), LossSection(nsp_distillation=0), tiny_tokenizer)
    assert bare(batch).nsp_logits is None
    assert bare.bert.pooler is None


@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        (MINILM, LossSection(), "has no NSP head, which loss.nsp_distillation=1.0 needs"),
        (MINILM, LossSection(nsp_distillation=0, mlm_distillation=1), "has no MLM head"),
        ("./no/such/folder", LossSection(), "does not exist"),
    ],
)
def test_teachers_that_do_not_fit(name: str, loss: LossSection, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_teacher(name, loss, load_tokenizer(MINILM))


def test_teacher_with_another_vocabulary(tiny_tokenizer, tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 30522 tokens, the tokenizer"):
        load_teacher(MINILM, LossSection(nsp_distillation=0), tiny_tokenizer)
    for file in tiny_teacher.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace('"river"', '"rivers"'), encoding="utf-8")
    with pytest.raises(UserError, match="has a tokenizer with fingerprint"):
        load_teacher(str(tmp_path), LossSection(), tiny_tokenizer)


def test_teacher_that_is_no_bert(tmp_path: Path, tiny_tokenizer) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(UserError, match="is of type 'gpt2', wanted 'bert'"):
        load_teacher(str(tmp_path), LossSection(), tiny_tokenizer)


def test_a_teachers_own_code_does_not_run(tmp_path: Path, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked whether it may: transformers would, and takes a yes."""
    config = {"model_type": "other", "auto_map": {"AutoConfig": "configuration_other.OtherConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "configuration_other.py").write_text(
        f"from transformers import PreTrainedConfig\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
        "class OtherConfig(PreTrainedConfig):\n    model_type = 'other'\n",
        encoding="utf-8",
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="is of type 'other', wanted 'bert'"):
        load_teacher(str(tmp_path), LossSection(), tiny_tokenizer)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", BERT_DAMAGE)
def test_a_damaged_teacher_is_named_in_a_sentence(
    damage: Callable[[Path], None], tiny_teacher: Path, tiny_tokenizer, tmp_path: Path
) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    damage(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"teacher .* cannot be loaded: .+; give a folder"):
        load_teacher(str(tmp_path / "teacher"), LossSection(), tiny_tokenizer)
