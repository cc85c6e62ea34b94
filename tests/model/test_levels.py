"""Activations of 2, 4 and 8 bits against BiT's and LSQ's formulas, written out once more."""

import math

import pytest
import torch

from bitbert.errors import UserError
from bitbert.model import BitBertConfig, BitBertForSequenceClassification
from bitbert.model.calibrate import calibrate_step_sizes, set_activation_bits
from bitbert.model.export import pack_model
from bitbert.model.levels import level_range, quantize_levels
from bitbert.model.linear import Binarizer, BinarizerStatistics
from tests.conftest import tiny_model


@pytest.mark.parametrize(
    ("kind", "bits", "levels"),
    [
        ("signed", 1, [-1, 1]),
        ("signed", 2, [-2, -1, 0, 1]),
        ("signed", 4, list(range(-8, 8))),
        ("signed", 8, list(range(-128, 128))),
        ("unsigned", 1, [0, 1]),
        ("unsigned", 2, [0, 1, 2, 3]),
        ("unsigned", 4, list(range(16))),
        ("unsigned", 8, list(range(256))),
    ],
)
def test_level_sets(kind: str, bits: int, levels: list[int]) -> None:
    binarizer = Binarizer(kind)
    binarizer.bits = bits
    with torch.no_grad():
        binarizer.alpha.fill_(0.1)
    codes, step = binarizer(torch.linspace(-20, 40, 5999))
    assert step.item() == pytest.approx(0.1)
    assert codes.unique().tolist() == levels


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_and_gradients_are_lsq(kind: str, bits: int) -> None:
    torch.manual_seed(bits)
    lowest, highest = level_range(kind, bits)
    x = (torch.randn(400) * 0.4 * highest).requires_grad_()
    binarizer, upstream = Binarizer(kind), torch.randn(400)
    binarizer.bits = bits
    with torch.no_grad():
        binarizer.alpha.fill_(0.37)
    codes, step = binarizer(x)
    (codes * step).backward(upstream)

    ratio = x.detach() / 0.37
    assert torch.allclose((codes * step).detach(), ratio.round().clamp(lowest, highest) * 0.37)
    window = (ratio >= lowest) & (ratio <= highest)
    assert 0 < window.sum() < 400  # both branches are there
    assert torch.allclose(x.grad, upstream * window, atol=1e-6)
    t = torch.where(ratio < lowest, lowest, torch.where(ratio > highest, highest, ratio.round() - ratio))
    expected = (upstream * t).sum().item() / math.sqrt(400 * highest)
    assert binarizer.alpha.grad.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_halves_round_to_even() -> None:
    codes = quantize_levels(torch.tensor([0.5, 1.5, 2.5, -0.5]), torch.ones(1), -8, 7)
    assert codes.tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize(("kind", "factor"), [("signed", 2 / math.sqrt(7)), ("unsigned", 4 / math.sqrt(15))])
def test_calibration_divides_by_the_root_of_the_highest_code(kind: str, factor: float) -> None:
    binarizer, x = Binarizer(kind), torch.rand(3, 5)
    binarizer.bits, binarizer.calibrating = 4, True
    binarizer(x)
    assert binarizer.alpha.item() == pytest.approx(factor * x.mean().item())


def test_saturation_counts_beyond_the_highest_level() -> None:
    binarizer = Binarizer("signed")
    binarizer.bits, binarizer.monitor = 4, BinarizerStatistics()
    binarizer(torch.tensor([6.0, 7.5, -9.0, 0.0]))
    assert binarizer.monitor.saturation.item() == 0.5


def test_more_bits_follow_full_precision_more_closely_and_train(tiny_tokenizer) -> None:
    ids = torch.randint(5, tiny_tokenizer.vocab_size, (4, 16))
    steps = {}
    for bits in (1, 2, 4, 8):
        model = tiny_model(
            "bipft-b", "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size, activation_bits=bits
        )
        model(ids, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        alphas = [parameter for name, parameter in model.named_parameters() if name.endswith(".alpha")]
        assert all(torch.isfinite(alpha.grad).all() for alpha in alphas)
        steps[bits] = model.bitbert.layers[0].attention.query.input_binarizer.alpha.item()
    # The same input everywhere: the initial rule alone decides.
    assert steps[2] == pytest.approx(steps[1])
    assert steps[4] == pytest.approx(steps[1] / math.sqrt(7))
    assert steps[8] == pytest.approx(steps[1] / math.sqrt(127))


def test_a_curriculum_ends_in_the_1_bit_model(tiny_tokenizer, tmp_path) -> None:
    def classifier(bits: int) -> torch.nn.Module:
        vocab_size = tiny_tokenizer.vocab_size
        return tiny_model("bitbert", "BitBertForSequenceClassification", vocab_size=vocab_size, activation_bits=bits)

    ids = torch.randint(5, tiny_tokenizer.vocab_size, (2, 12))
    model, one_bit = classifier(4), classifier(1)
    assert not torch.equal(model(ids).logits, one_bit(ids).logits)
    with pytest.raises(UserError, match=r"activations have 4 bits, and the packed format"):
        pack_model(model, tiny_tokenizer, max_length=32)
    step = model.bitbert.layers[1].output.input_binarizer.alpha  # unsigned
    four_bits = step.item()
    set_activation_bits(model, 1)
    assert step.item() == pytest.approx(four_bits * math.sqrt(15))
    calibrate_step_sizes(model, {"input_ids": ids})
    calibrate_step_sizes(one_bit, {"input_ids": ids})
    assert torch.equal(model(ids).logits, one_bit(ids).logits)
    pack_model(model, tiny_tokenizer, max_length=32)

    set_activation_bits(model, 2)
    model.save_pretrained(tmp_path)
    again = BitBertForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.activation_bits == 2
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(Exception, match="activation_bits 3, wanted one of 1, 2, 4, 8"):
        BitBertConfig(activation_bits=3)
    with pytest.raises(UserError, match="activation_bits 16, wanted one of"):
        set_activation_bits(torch.nn.Linear(1, 1), 16)
