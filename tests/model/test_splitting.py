"""Half-width models and ternary weight splitting: what is kept, and that the function stays."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bitbert.errors import UserError
from bitbert.model import BitBertConfig
from bitbert.model.convert import from_full_precision
from bitbert.model.splitting import half_width, split_ternary, split_weight
from bitbert.model.weights import WEIGHT_BINARIZERS
from bitbert.presets import preset_fields
from tests.conftest import TINY_SHAPE, tiny_model


@pytest.mark.parametrize("weight_scale", ["tensor", "channel"])
def test_two_binary_weights_are_one_ternary_weight(weight_scale: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 50, dtype=torch.float64)
    first, second = split_weight(weight, weight_scale)
    assert torch.allclose(first + second, weight)
    ternary, scale = WEIGHT_BINARIZERS["ternary"].linear(weight, weight_scale)
    halves = [WEIGHT_BINARIZERS["uncentered"].linear(part, weight_scale) for part in (first, second)]
    for signs, half in halves:
        assert torch.allclose(half, scale / 2)
        assert signs.abs().unique().tolist() == [1]
    assert torch.equal(sum(signs for signs, _ in halves), 2 * ternary)
    assert (ternary == 0).any()


def test_rows_of_zeros_and_rows_without_zeros_are_split() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 1.0]])
    first, second = split_weight(weight, "channel")
    assert torch.equal(first + second, weight)
    assert torch.allclose(first[1], weight[1] / 2)
    ternary, _ = WEIGHT_BINARIZERS["ternary"].linear(weight, "channel")
    assert ternary[0].abs().sum() == 0


def test_a_row_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"layer\.weight: a row's small weights"):
        split_weight(torch.tensor([[40.0] + [-1.3] * 40]), "channel", "layer.weight")


@pytest.mark.parametrize("bits", [2, 8])
def test_the_split_model_is_the_ternary_model(bits: int, tiny_tokenizer) -> None:
    """In float64 no value lies within rounding of a level, so the two functions are one."""
    fields = {"activation_bits": bits, "num_attention_heads": 2, "attention_head_size": 8}
    model_class, vocab_size = "BitBertForSequenceClassification", tiny_tokenizer.vocab_size
    ternary = tiny_model("ternarybert", model_class, vocab_size=vocab_size, **fields).double()
    split = split_ternary(ternary)
    assert split.config.method == "binarybert"
    assert (split.config.activation_bits, split.config.step_sizes) == (bits, "minmax")
    ids = torch.randint(5, vocab_size, (3, 20))
    with torch.no_grad():
        expected, found = (model(ids, output_hidden_states=True) for model in (ternary, split))
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)
    assert torch.allclose(found.logits, expected.logits, atol=1e-10)
    split(ids, labels=torch.tensor([0, 1, 0])).loss.backward()
    linear = split.bitbert.layers[0].intermediate
    assert linear.weight.grad.abs().sum() > 0
    assert linear.split_weight.grad.abs().sum() > 0


def test_only_ternary_models_are_split(tiny_tokenizer) -> None:
    with pytest.raises(UserError, match="weights are mean_centered, wanted ternary"):
        split_ternary(tiny_model("bit", "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size))


def test_half_width_keeps_the_strongest_heads_and_units() -> None:
    torch.manual_seed(0)
    shape = TINY_SHAPE | {"vocab_size": 60}
    bert = BertForSequenceClassification(BertConfig(**shape)).eval()
    with torch.no_grad():  # heads 1 and 3 and the odd units carry the whole function
        for layer in bert.bert.encoder.layer:
            layer.attention.output.dense.weight.unflatten(1, (4, 8))[:, [0, 2]] = 0
            layer.output.dense.weight[:, ::2] = 0
    tensors, fields = half_width(bert.state_dict(), BitBertConfig(**shape))
    assert fields == {"num_attention_heads": 2, "attention_head_size": 8, "intermediate_size": 32}
    own = bert.state_dict()
    value = "bert.encoder.layer.1.attention.self.value"
    assert torch.equal(tensors[f"{value}.weight"], own[f"{value}.weight"].unflatten(0, (4, 8))[[1, 3]].flatten(0, 1))
    assert torch.equal(
        tensors["bert.encoder.layer.0.output.dense.weight"], own["bert.encoder.layer.0.output.dense.weight"][:, 1::2]
    )
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    config = BitBertConfig(**shape | fields | preset_fields("ternarybert"))
    student = from_full_precision(encoder, config)
    assert student.bitbert.layers[1].attention.value.weight.shape == (16, 32)
    with pytest.raises(UserError, match="no half"):
        half_width(bert.state_dict(), BitBertConfig(**shape | {"num_attention_heads": 1, "intermediate_size": 63}))
