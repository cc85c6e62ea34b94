"""The native forward pass: against numpy decision by decision, against torch, alone and in batches."""

import multiprocessing
import os

import numpy as np
import pytest
import torch

from bitbert.errors import UserError
from bitbert.runtime.native import NativeModel, instruction_sets
from bitbert.runtime.reference import ReferenceModel
from tests.runtime.conftest import METHODS, ODD_SHAPE, MakePacked, sequences

ISAS = instruction_sets()
WANTED = ("states", "last", "pooled", "logits")
WIDE_SHAPE = {"hidden_size": 256, "num_attention_heads": 2, "intermediate_size": 320, "max_position_embeddings": 64}
SHAPES = {"odd": ODD_SHAPE, "wide heads": WIDE_SHAPE, "one head": {"num_attention_heads": 1}, "tiny": {}}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("isa", ISAS)
def test_states_equal_the_reference(make_packed: MakePacked, isa: str, method: str, shape: str) -> None:
    """Every depth agrees to rounding, so no binary decision differs."""
    _, packed = make_packed(method, **SHAPES[shape])
    batch = sequences([1, 2, 31, 32, 33, 47], packed.config.vocab_size)
    found, expected = (
        NativeModel(packed.config, packed.tensors, isa).run(*batch, WANTED),
        ReferenceModel(packed).run(*batch, WANTED),
    )
    for name in WANTED:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_logits_equal_torch(make_packed: MakePacked, method: str) -> None:
    model, packed = make_packed(method, **ODD_SHAPE)
    native = NativeModel(packed.config, packed.tensors)
    for length in (1, 5, 64):
        ids, types = sequences([length], packed.config.vocab_size, seed=length)
        with torch.no_grad():
            inputs = {
                "input_ids": torch.from_numpy(ids[0])[None],
                "token_type_ids": torch.from_numpy(types[0]).long()[None],
            }
            expected = model(**inputs).logits.numpy()
        np.testing.assert_allclose(native.run(ids, types, ("logits",))["logits"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_instruction_sets_give_the_same_bits(make_packed: MakePacked, method: str) -> None:
    _, packed = make_packed(method, **ODD_SHAPE)
    batch = sequences([512, 1, 77], packed.config.vocab_size)
    outputs = [NativeModel(packed.config, packed.tensors, isa).run(*batch, WANTED) for isa in ISAS]
    for other in outputs[1:]:
        assert all(np.array_equal(outputs[0][name], other[name]) for name in WANTED)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("changed", "factor"),
    [
        ("query_binarizer.alpha", 1e-3),  # almost uniform
        ("query_binarizer.alpha", 2),  # the table's whole range
        ("query_binarizer.alpha", 60),  # scores span more than a table holds
        ("estimator.query_residual.weight", 300),  # estimates span more than factors hold
    ],
)
def test_scores_of_any_span(make_packed: MakePacked, isa: str, changed: str, factor: float) -> None:
    """Weights come from a table where floats hold it, else from exponentials: the decisions are the same."""
    _, packed = make_packed("bipft-b", **ODD_SHAPE | {"num_hidden_layers": 1})
    tensors = dict(packed.tensors)
    tensors[f"bitbert.layers.0.attention.{changed}"] = tensors[f"bitbert.layers.0.attention.{changed}"] * np.float32(
        factor
    )
    packed = type(packed)(packed.config, tensors, packed.tokenizer)
    batch = sequences([1, 33, 150], packed.config.vocab_size)
    found = NativeModel(packed.config, tensors, isa).run(*batch, ("last",))["last"]
    np.testing.assert_allclose(found, ReferenceModel(packed).run(*batch, ("last",))["last"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_give_the_same_bits(make_packed: MakePacked, num_threads: int) -> None:
    _, packed = make_packed("bitbert", **ODD_SHAPE)
    batch = sequences([512, 3, 200, 1], packed.config.vocab_size)
    model = NativeModel(packed.config, packed.tensors)
    alone = model.run(*batch, WANTED)
    model.set_threads(num_threads)
    for _ in range(3):
        together = model.run(*batch, WANTED)
        assert all(np.array_equal(alone[name], together[name]) for name in WANTED)


def test_a_forked_child_answers(make_packed: MakePacked) -> None:
    """It has none of the pool's threads: it must neither wait for them nor for their end."""
    _, packed = make_packed("bitbert", **ODD_SHAPE)
    batch = sequences([40, 3, 20], packed.config.vocab_size)
    model = NativeModel(packed.config, packed.tensors)
    model.set_threads(3)
    expected = model.run(*batch, WANTED)

    def answer() -> None:
        found = model.run(*batch, WANTED)
        model.set_threads(2)
        again = model.run(*batch, WANTED)
        same = all(np.array_equal(expected[name], each[name]) for name in WANTED for each in (found, again))
        os._exit(0 if same else 1)

    child = multiprocessing.get_context("fork").Process(target=answer)
    child.start()
    child.join(timeout=60)
    child.kill()
    assert child.exitcode == 0


def test_a_batch_of_33_equals_its_sequences_alone(make_packed: MakePacked) -> None:
    _, packed = make_packed("bipft-b", **ODD_SHAPE)
    lengths = [1 + 7 * index % 40 for index in range(33)]
    ids, types = sequences(lengths, packed.config.vocab_size)
    model = NativeModel(packed.config, packed.tensors)
    together = model.run(ids, types, ("pooled", "logits", "last"))
    assert together["last"].shape == (sum(lengths), ODD_SHAPE["hidden_size"])
    for index, (one, of_types) in enumerate(zip(ids, types, strict=True)):
        alone = model.run([one], [of_types], ("pooled", "logits"))
        assert np.array_equal(alone["pooled"][0], together["pooled"][index])
        assert np.array_equal(alone["logits"][0], together["logits"][index])


@pytest.mark.parametrize("spread", [0.05, 0.3, 5.0])
@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
@pytest.mark.parametrize("ffn_input", ["signed", "unsigned"])
def test_folded_thresholds_equal_the_formula(
    make_packed: MakePacked, hidden_act: str, ffn_input: str, spread: float
) -> None:
    """Shifts on either side of GELU's minimum, biases far into its tail, both kinds of second input."""
    fields = {
        "hidden_act": hidden_act,
        "ffn_input": ffn_input,
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 512,
    }
    _, packed = make_packed("bipft-a", spread, **fields)
    batch = sequences([40], packed.config.vocab_size)
    found = NativeModel(packed.config, packed.tensors).run(*batch, ("last",))["last"]
    np.testing.assert_allclose(found, ReferenceModel(packed).run(*batch, ("last",))["last"], atol=2e-5, rtol=0)


def test_zero_shifts_keep_the_sign_of_gelus_tail(make_packed: MakePacked) -> None:
    _, packed = make_packed("bipft-a", num_hidden_layers=1, hidden_size=64)
    tensors = dict(packed.tensors)
    prefix = "bitbert.layers.0"
    tensors[f"{prefix}.output.shift"] = np.zeros_like(tensors[f"{prefix}.output.shift"])
    tensors[f"{prefix}.intermediate.bias"] = np.linspace(-16, 2, 64, dtype=np.float32)
    packed = type(packed)(packed.config, tensors, packed.tokenizer)
    batch = sequences([40], packed.config.vocab_size)
    found = NativeModel(packed.config, tensors).run(*batch, ("last",))["last"]
    np.testing.assert_allclose(found, ReferenceModel(packed).run(*batch, ("last",))["last"], atol=2e-5, rtol=0)


def test_unfit_tensors_and_arguments_are_refused(make_packed: MakePacked) -> None:
    _, packed = make_packed("bipft-b")
    name = "bitbert.layers.1.output.bias"

    def build(**changed: np.ndarray | None) -> NativeModel:
        tensors = {**packed.tensors, **{key.replace("__", "."): value for key, value in changed.items()}}
        return NativeModel(packed.config, {key: value for key, value in tensors.items() if value is not None})

    for value, message in (
        (None, f"{name} is missing"),
        (np.zeros(3, np.float32), f"{name} has 12 bytes, wanted 128"),
        (np.full(32, np.nan, np.float32), f"{name} holds -?nan, wanted finite values"),
    ):
        with pytest.raises(UserError, match=message):
            build(**{name.replace(".", "__"): value})
    with pytest.raises(UserError, match=r"there are \d+ tensors, wanted"):
        build(extra=np.zeros(1, np.float32))
    with pytest.raises(UserError, match="threads is 0, wanted 1 to 256"):
        build().set_threads(0)
    with pytest.raises(UserError, match="'mmx' is not one that this processor runs"):
        NativeModel(packed.config, packed.tensors, "mmx")


@pytest.mark.parametrize("model_class", [NativeModel, ReferenceModel])
def test_bad_batches_are_refused_alike(make_packed: MakePacked, model_class: type) -> None:
    _, packed = make_packed("bipft-b")
    model = NativeModel(packed.config, packed.tensors) if model_class is NativeModel else ReferenceModel(packed)
    limit = packed.config.vocab_size - 1
    for ids, types, message in (
        ([], [], "sequence of 0 tokens, wanted 1 to 48"),
        ([5] * 49, [0] * 49, "sequence of 49 tokens, wanted 1 to 48"),
        ([limit + 1], [0], f"wanted 0 to {limit}"),
        ([2**32], [0], f"wanted 0 to {limit}"),
        ([-1], [0], f"wanted 0 to {limit}"),
        ([5], [2], "token type id 2, wanted 0 to 1"),
        ([5, 6], [0], "1 token type ids for 2 tokens"),
    ):
        with pytest.raises(UserError, match=message):
            model.run([ids], [types], ("pooled",))


def test_product_times_are_measured(make_packed: MakePacked) -> None:
    _, packed = make_packed("bipft-b")
    model = NativeModel(packed.config, packed.tensors)
    assert 0 < model.time_products(48) < 1
    with pytest.raises(UserError, match="sequence of 49 tokens"):
        model.time_products(49)
