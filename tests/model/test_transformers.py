"""transformers' side: Auto classes, save and load, heads, resizing, initialisation from a full-precision BERT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForPreTraining,
    BertModel,
)

from bitbert.errors import UserError
from bitbert.model import BitBertConfig, BitBertForPreTraining, BitBertForSequenceClassification
from bitbert.model.convert import from_full_precision
from bitbert.model.linear import BinaryEmbedding
from bitbert.presets import METHOD_FIELDS, PRESETS, preset_fields
from tests.conftest import TINY_SHAPE, tiny_model

AUTO = {
    "BitBertModel": AutoModel,
    "BitBertForPreTraining": AutoModelForPreTraining,
    "BitBertForMaskedLM": AutoModelForMaskedLM,
    "BitBertForNextSentencePrediction": AutoModelForNextSentencePrediction,
    "BitBertForSequenceClassification": AutoModelForSequenceClassification,
    "BitBertForTokenClassification": AutoModelForTokenClassification,
    "BitBertForQuestionAnswering": AutoModelForQuestionAnswering,
}
IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_class", AUTO)
def test_save_and_load_through_auto_classes(model_class: str, tmp_path: Path) -> None:
    model = tiny_model("bipft-b", model_class, vocab_size=100)
    model.save_pretrained(tmp_path)
    loaded = AUTO[model_class].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    config = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in METHOD_FIELDS} == {
        name: getattr(model.config, name) for name in METHOD_FIELDS
    }
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    with torch.no_grad():
        found, expected = (each.eval()(IDS).to_tuple() for each in (loaded, model))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_losses_and_tuples() -> None:
    mlm = tiny_model("bipft-a", "BitBertForMaskedLM", vocab_size=100)
    labels = torch.full_like(IDS, -100)
    labels[:, 3] = IDS[:, 3]
    output = mlm(IDS, labels=labels)
    assert output.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits[:, 3], IDS[:, 3]).item())
    assert torch.equal(mlm(IDS, return_dict=False)[0], output.logits)
    nsp = tiny_model("bipft-a", "BitBertForNextSentencePrediction", vocab_size=100)
    assert nsp(IDS, labels=torch.tensor([0, 1])).loss > 0
    regression = tiny_model("bipft-a", "BitBertForSequenceClassification", vocab_size=100, num_labels=1)
    logits = regression(IDS).logits[:, 0]
    assert regression(IDS, labels=torch.tensor([1.0, 2.0])).loss.item() == pytest.approx(
        (logits - torch.tensor([1.0, 2.0])).square().mean().item()
    )


def test_token_and_span_losses_leave_ignored_positions_out() -> None:
    tokens = tiny_model("bipft-b", "BitBertForTokenClassification", vocab_size=100, num_labels=3)
    labels = torch.full_like(IDS, -100)
    labels[:, 4] = torch.tensor([2, 0])
    output = tokens(IDS, labels=labels)
    assert output.logits.shape == (*IDS.shape, 3)
    expected = torch.nn.functional.cross_entropy(output.logits[:, 4], torch.tensor([2, 0]))
    assert output.loss.item() == pytest.approx(expected.item())
    assert torch.equal(tokens(IDS, return_dict=False)[0], output.logits)

    spans = tiny_model("bipft-b", "BitBertForQuestionAnswering", vocab_size=100)
    output = spans(IDS, start_positions=torch.tensor([1, -100]), end_positions=torch.tensor([3, 5]))
    cross_entropy = torch.nn.functional.cross_entropy
    start = cross_entropy(output.start_logits[:1], torch.tensor([1]))
    end = cross_entropy(output.end_logits, torch.tensor([3, 5]))
    assert output.loss.item() == pytest.approx((start + end).item() / 2)
    assert [tuple(part.shape) for part in spans(IDS, return_dict=False)] == [tuple(IDS.shape)] * 2


def test_masked_positions_select_rows_of_the_full_logits() -> None:
    model = tiny_model("bipft-b", vocab_size=100)
    positions = torch.tensor([1, 5, 17])
    full = model(IDS).prediction_logits.flatten(0, 1)[positions]
    assert torch.allclose(model(IDS, masked_positions=positions).prediction_logits, full, atol=1e-6)


def test_attentions_are_binary() -> None:
    model = tiny_model("bipft-b", vocab_size=100)
    output = model.bitbert(IDS, output_attentions=True)
    step = model.bitbert.layers[0].attention.probability_binarizer.alpha.item()
    values = output.attentions[0].unique().tolist()
    assert values == pytest.approx([0.0, step])


def test_decoder_is_tied_and_gets_both_gradients() -> None:
    model = tiny_model("bipft-b", vocab_size=100)
    assert model.mlm_head.decoder.weight is model.bitbert.embeddings.word_embeddings.weight
    model(IDS).prediction_logits.sum().backward()
    assert model.mlm_head.decoder.weight.grad[99].abs().sum() > 0  # a token that is not in the input


def test_resized_embeddings_stay_binary() -> None:
    model = tiny_model("bipft-b", vocab_size=100)
    model.resize_token_embeddings(104, mean_resizing=False)
    table = model.bitbert.embeddings.word_embeddings
    assert isinstance(table, BinaryEmbedding)
    assert table.weight.shape[0] == 104
    rows = model.get_input_embeddings()(torch.tensor([3]))[0]
    assert rows.abs().unique().numel() == 1


def test_half_precision_keeps_thresholds(tmp_path: Path) -> None:
    model = tiny_model("bipft-b", vocab_size=100)
    model.save_pretrained(tmp_path)
    loaded = BitBertForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    binary = loaded.bitbert.layers[0].attention.query
    assert (binary.weight.dtype, binary.shift.dtype, binary.input_binarizer.alpha.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("bipft-b", torch.bfloat16),
        ("bitbert", torch.float16),
        ("bibert", torch.bfloat16),
        ("ternarybert", torch.bfloat16),  # sums of its 8-bit codes are beyond float16
    ],
)
def test_models_of_half_precision_run_and_come_back(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    model = tiny_model(method, vocab_size=100)
    ids = torch.randint(5, 100, (2, 9))
    expected = model.eval()(ids).prediction_logits
    model.save_pretrained(tmp_path)
    half = BitBertForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    half.save_pretrained(tmp_path / "again")
    again = BitBertForPreTraining.from_pretrained(tmp_path / "again")
    for loaded in (half, again):
        found = loaded.eval()(ids)
        assert found.prediction_logits.dtype == dtype
        assert torch.isfinite(found.prediction_logits).all()
        assert (found.prediction_logits.float() - expected).std() < expected.std()  # some bits flip
        found.prediction_logits.float().square().mean().backward()
        assert loaded.bitbert.layers[0].attention.query.weight.grad.abs().sum() > 0


def test_losses_are_those_of_the_problem_type() -> None:
    ids, functional = torch.randint(5, 100, (4, 6)), torch.nn.functional

    def run(labels: torch.Tensor, **fields: Any) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        config = tiny_model("bipft-b", vocab_size=100).config
        model = BitBertForSequenceClassification(BitBertConfig(**{**config.to_diff_dict(), **fields})).eval()
        output = model(ids, labels=labels)
        return output.loss, output.logits

    classes, several, values = torch.tensor([0, 2, 1, 1]), torch.randint(0, 2, (4, 3)).float(), torch.randn(4, 3)
    loss, logits = run(classes, num_labels=3)
    assert torch.equal(loss, functional.cross_entropy(logits, classes))
    loss, logits = run(several, num_labels=3, problem_type="multi_label_classification")
    assert torch.equal(loss, functional.binary_cross_entropy_with_logits(logits, several))
    assert torch.equal(run(several, num_labels=3)[0], loss)
    loss, logits = run(values, num_labels=3, problem_type="regression")
    assert torch.equal(loss, functional.mse_loss(logits, values))
    loss, logits = run(values[:, 0], num_labels=1)
    assert torch.equal(loss, functional.mse_loss(logits[:, 0], values[:, 0]))


def test_autocast_rounds_no_regression_target() -> None:
    config = tiny_model("bipft-b", vocab_size=100).config
    model = BitBertForSequenceClassification(BitBertConfig(**{**config.to_diff_dict(), "num_labels": 1})).eval()
    model.classifier.bias.data.fill_(2000.0)
    model.classifier.weight.data.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randint(5, 100, (4, 6)), labels=torch.tensor([1995.0, 1996.0, 1998.0, 2003.0])).loss
    assert loss.item() == 13.5


def test_traced_and_exported_models_answer_alike() -> None:
    model, ids = tiny_model("bipft-b", vocab_size=100).bitbert.eval(), torch.randint(5, 100, (2, 9))
    expected = model(ids).last_hidden_state
    traced = torch.jit.trace(model, (ids,), strict=False)(ids)
    exported = torch.export.export(model, (ids,)).module()(ids)
    for found in (traced, exported):
        found = found["last_hidden_state"] if isinstance(found, dict) else found.last_hidden_state
        assert torch.allclose(found, expected, atol=1e-5)


def test_unknown_preset_and_shapes() -> None:
    with pytest.raises(UserError, match="did you mean 'bipft-a'"):
        preset_fields("bipft_a")
    with pytest.raises(ValueError, match="not a multiple"):
        BitBertConfig(hidden_size=10, num_attention_heads=3)
    assert set(PRESETS) >= {"bipft-a", "bipft-b", "baseline"}


def test_initialised_from_full_precision(tiny_teacher: Path) -> None:
    teacher = BertForPreTraining.from_pretrained(tiny_teacher)
    config = BitBertConfig(vocab_size=teacher.config.vocab_size, **TINY_SHAPE, **preset_fields("bipft-b"))
    student = from_full_precision(teacher.state_dict(), config)
    layer = teacher.bert.encoder.layer[1]
    assert torch.equal(student.bitbert.layers[1].output.weight, layer.output.dense.weight)
    assert torch.equal(student.bitbert.layers[1].attention.value.bias, layer.attention.self.value.bias)
    assert torch.equal(student.mlm_head.decoder.weight, teacher.bert.embeddings.word_embeddings.weight)
    assert torch.equal(student.nsp_head.weight, teacher.cls.seq_relationship.weight)
    assert student.bitbert.layers[0].attention.query.shift.abs().sum() == 0
    assert not student.bitbert.pooler.dense.input_binarizer.calibrated


def test_bare_encoder_and_encoder_without_pooler(tiny_teacher: Path) -> None:
    bare = BertModel.from_pretrained(tiny_teacher)
    config = BitBertConfig(vocab_size=bare.config.vocab_size, **TINY_SHAPE, **preset_fields("bitbert"))
    tensors = bare.state_dict()
    assert torch.equal(from_full_precision(tensors, config).bitbert.pooler.dense.weight, bare.pooler.dense.weight)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    assert not torch.equal(from_full_precision(without, config).bitbert.pooler.dense.weight, bare.pooler.dense.weight)


def test_teacher_of_another_shape(tiny_teacher: Path) -> None:
    tensors = BertForPreTraining.from_pretrained(tiny_teacher).state_dict()
    for change, message in (
        ({"intermediate_size": 128}, "has shape"),
        ({"num_hidden_layers": 3}, "missing bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "not understood"),
    ):
        config = BitBertConfig(
            vocab_size=tensors["bert.embeddings.word_embeddings.weight"].shape[0], **{**TINY_SHAPE, **change}
        )
        with pytest.raises(UserError, match=message):
            from_full_precision(tensors, config)
