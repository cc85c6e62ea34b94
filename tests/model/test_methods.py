"""The formulas of BiBERT, TernaryBERT and BinaryBERT, written out once more, and what their configs refuse."""

import math

import pytest
import torch

from bitbert.errors import UserError
from bitbert.model import BitBertConfig, BitBertForSequenceClassification
from bitbert.model.binarize import binarize_bool, binarize_strict_bool
from bitbert.model.calibrate import set_activation_bits
from bitbert.model.export import pack_model
from bitbert.model.levels import minmax_step
from bitbert.model.methods import CodedEmbedding, CodedLinear
from bitbert.model.weights import WEIGHT_BINARIZERS, ternary_codes
from bitbert.presets import PRESETS, preset_fields
from bitbert.runtime import Runtime
from tests.conftest import tiny_model


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def classifier(method: str, vocab_size: int, **fields: object) -> BitBertForSequenceClassification:
    return tiny_model(method, "BitBertForSequenceClassification", vocab_size=vocab_size, **fields)


def test_row_centered_weights_and_their_gradient() -> None:
    weight = torch.randn(5, 8, requires_grad=True)
    codes, scale = WEIGHT_BINARIZERS["row_centered"].linear(weight, "channel")
    latent = weight.detach()
    centered = latent - latent.mean(dim=1, keepdim=True)
    assert torch.equal(codes, torch.where(centered >= 0, 1.0, -1.0))
    assert torch.allclose(scale, latent.abs().mean(dim=1))
    upstream = torch.randn(5, 8)
    (codes * scale[:, None]).backward(upstream)
    inside = upstream * (centered.abs() <= 1)
    assert (centered.abs() > 1).any()  # the window is seen
    assert torch.allclose(weight.grad, inside - inside.mean(dim=1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("weight_scale", ["tensor", "channel"])
def test_ternary_weights_and_their_gradient(weight_scale: str) -> None:
    weight = torch.randn(4, 16, requires_grad=True)
    codes, scale = WEIGHT_BINARIZERS["ternary"].linear(weight, weight_scale)
    rows = weight.detach() if weight_scale == "channel" else weight.detach().reshape(1, -1)
    expected = []
    for row in rows:
        threshold = 0.7 * row.abs().mean()
        kept = row.abs() > threshold
        expected.append(torch.where(kept, row.sign(), 0.0) * row.abs()[kept].mean())
    assert torch.allclose((codes * scale[:, None]).detach(), torch.stack(expected).reshape(4, 16))
    upstream = torch.randn(4, 16)
    (codes * scale[:, None]).backward(upstream)
    assert torch.allclose(weight.grad, upstream, atol=1e-6)


def test_zero_weights_are_ternary_zeros() -> None:
    codes, scale = ternary_codes(torch.zeros(2, 4), "tensor")
    assert codes.abs().sum() == 0
    assert scale.item() > 0


def test_uncentered_weights_keep_their_own_sign() -> None:
    weight = torch.full((2, 3), 0.5)
    weight[0, 0] = 0.1  # below the mean, and positive
    codes, scale = WEIGHT_BINARIZERS["uncentered"].linear(weight, "tensor")
    assert codes.unique().tolist() == [1]
    assert scale.item() == pytest.approx(weight.abs().mean().item())


def test_bool_and_its_strict_version_differ_at_zero() -> None:
    scores = torch.tensor([-2.0, -0.5, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    one = torch.ones(1)
    assert binarize_bool(scores, one).tolist() == [0, 0, 1, 1, 1, 1]
    assert binarize_strict_bool(scores, one).tolist() == [0, 0, 0, 1, 1, 1]
    binarize_strict_bool(scores, one).sum().backward()
    assert scores.grad.tolist() == [0, 1, 1, 1, 0, 0]  # the open window of BiBERT's code


def test_minmax_steps_reach_the_largest_input() -> None:
    assert minmax_step(torch.tensor([-3.0, 1.0]), 127).item() == pytest.approx(3 / 127)
    assert minmax_step(torch.zeros(2), 127).item() > 0


@pytest.mark.parametrize("method", ["bibert", "ternarybert", "binarybert"])
def test_what_is_not_learned_stays_frozen_through_saving_and_training(method: str, tiny_tokenizer, tmp_path) -> None:
    vocab_size = tiny_tokenizer.vocab_size
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(1)
    config = BitBertConfig(vocab_size=vocab_size, max_position_embeddings=32, **shape, **preset_fields(method))
    BitBertForSequenceClassification(config).save_pretrained(tmp_path)
    model = BitBertForSequenceClassification.from_pretrained(tmp_path)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(name.endswith((".alpha", ".shift")) for name in frozen)
    assert any(name.endswith(".shift") for name in frozen)
    assert any(name.endswith("query_binarizer.alpha") for name in frozen) == (
        PRESETS[method]["step_sizes"] != "learned"
    )
    model(torch.randint(5, vocab_size, (2, 9)), labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_padding_is_not_attended_to_by_bi_attention(tiny_tokenizer) -> None:
    model = classifier("bibert", tiny_tokenizer.vocab_size)
    ids, padded = torch.tensor([[2, 40, 41, 42, 3]]), torch.tensor([[2, 40, 41, 42, 3, 0, 0]])
    mask = (padded != 0).long()
    with torch.no_grad():
        alone, together = model(ids).logits, model(padded, attention_mask=mask, output_attentions=True)
    assert torch.allclose(alone, together.logits, atol=1e-6)
    assert all(attention[..., 5:].sum() == 0 for attention in together.attentions)
    assert all(attention[..., :5].unique().tolist() == [0, 1] for attention in together.attentions)


def test_split_layers_add_two_binary_products() -> None:
    from bitbert.model.linear import BinaryEmbedding, BinaryLinear

    linear = CodedLinear(BinaryLinear(6, 4, kind="signed", weight_scale="tensor"), "uncentered", split=True)
    table = CodedEmbedding(BinaryEmbedding(5, 6), "uncentered", split=True)
    with torch.no_grad():
        for parameter in (linear.weight, linear.split_weight, table.weight, table.split_weight):
            parameter.normal_()
    x = torch.randn(3, 6)
    signs = torch.where(x >= 0, 1.0, -1.0)
    weights = sum(w.abs().mean() * torch.where(w >= 0, 1.0, -1.0) for w in (linear.weight, linear.split_weight))
    assert torch.allclose(linear(x), signs @ weights.T, atol=1e-5)
    rows = sum(w[2].abs().mean() * torch.where(w[2] >= 0, 1.0, -1.0) for w in (table.weight, table.split_weight))
    assert torch.allclose(table(torch.tensor([2]))[0], rows)


def test_half_width_heads(tiny_tokenizer) -> None:
    model = classifier("ternarybert", tiny_tokenizer.vocab_size, num_attention_heads=2, attention_head_size=8)
    assert model.bitbert.layers[0].attention.query.weight.shape == (16, 32)
    assert model.bitbert.layers[0].attention_output.weight.shape == (32, 16)
    assert torch.isfinite(model(torch.tensor([[2, 40, 3]])).logits).all()


@pytest.mark.parametrize(
    ("method", "fields", "reason"),
    [
        ("ternarybert", {}, "its activations have 8 bits"),
        ("ternarybert", {"activation_bits": 1}, "its weights are ternary"),
        ("binarybert", {"activation_bits": 1}, "each of its weights is the sum of two binary ones"),
        ("bit", {"activation_bits": 2}, "its activations have 2 bits"),
        ("bit", {"step_sizes": "minmax"}, r"those of each batch \(minmax\)"),
        ("bit", {"attention_head_size": 4}, "its heads are 4 wide"),
    ],
)
def test_what_cannot_be_packed_says_why(method: str, fields: dict, reason: str, tiny_tokenizer) -> None:
    model = classifier(method, tiny_tokenizer.vocab_size, **fields)
    with pytest.raises(UserError, match=f"method '{method}' cannot be packed: .*{reason}"):
        pack_model(model, tiny_tokenizer, max_length=32)


def test_the_runtime_says_why_a_latent_model_does_not_run(tiny_tokenizer, tmp_path) -> None:
    for name, fields, message in (
        (
            "two-bits",
            {"activation_bits": 2},
            "cannot be packed: its activations have 2 bits.*runtime computes with 1 bit",
        ),
        ("one-bit", {}, "it holds latent weights.*pack them with bitbert-export"),
    ):
        classifier("bit", tiny_tokenizer.vocab_size, **fields).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=message):
            Runtime.load(tmp_path / name)
    with pytest.raises(UserError, match="no SHA256SUMS and"):
        Runtime.load(tmp_path)


def test_impossible_combinations_are_refused(tiny_tokenizer) -> None:
    with pytest.raises(Exception, match="activation_bits 2 with attention 'bi'"):
        BitBertConfig(**preset_fields("bibert") | {"activation_bits": 2})
    with pytest.raises(Exception, match="residual_rank 1 with Bi-Attention"):
        BitBertConfig(**preset_fields("bibert") | {"residual_rank": 1})
    with pytest.raises(UserError, match="plain signs"):
        set_activation_bits(classifier("bibert", tiny_tokenizer.vocab_size), 4)


def test_zero_scores_are_common_enough_for_the_strict_option() -> None:
    assert math.comb(64, 32) / 2**64 == pytest.approx(0.0993, abs=1e-4)
