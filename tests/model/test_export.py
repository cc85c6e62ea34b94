"""Training weights -> bits -> training weights, and the proof before publication."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitbert.errors import UserError
from bitbert.model import BitBertModel
from bitbert.model.export import pack_model, unpack_model
from bitbert.model.linear import Binarizer
from bitbert.model.verify import probe_sequences, verify_packed
from bitbert.packed import tensor_specs
from bitbert.presets import PRESETS
from bitbert.runtime import Runtime
from tests.conftest import tiny_model

# Methods with one bit a weight and one an activation, which the packed format describes.
PACKABLE = ("bipft-b", "bipft-a", "baseline", "bitbert", "bit", "bibert")
HEADS = {
    "pretraining": ("BitBertForPreTraining", {}),
    "next sentence": ("BitBertForNextSentencePrediction", {}),
    "classification": ("BitBertForSequenceClassification", {"num_labels": 3}),
    "classification of pairs": ("BitBertForSequenceClassification", {"num_labels": 3, "pairs": "bi_encoder"}),
}


@pytest.mark.parametrize("method", PACKABLE)
@pytest.mark.parametrize("head", HEADS)
def test_runtime_agrees_with_torch(method: str, head: str, tiny_tokenizer) -> None:
    model_class, fields = HEADS[head]
    model = tiny_model(method, model_class, vocab_size=tiny_tokenizer.vocab_size, **fields)
    packed = pack_model(model, tiny_tokenizer, max_length=32)
    assert list(packed.tensors) == list(tensor_specs(packed.config))
    assert verify_packed(packed, model) <= 1e-4


@pytest.mark.parametrize("method", PACKABLE)
def test_all_hidden_states_and_pooled_output(method: str, tiny_tokenizer) -> None:
    model = tiny_model(method, vocab_size=tiny_tokenizer.vocab_size, residual_rank=2 * PRESETS[method]["residual_rank"])
    packed = pack_model(model, tiny_tokenizer, max_length=32)
    double, runtime = unpack_model(packed).double().eval(), Runtime(packed, np.float64)
    for input_ids, token_type_ids in probe_sequences(packed):
        with torch.no_grad():
            output = double.bitbert(
                torch.tensor([input_ids]),
                token_type_ids=torch.tensor([token_type_ids]),
                output_hidden_states=True,
            )
        encoding = runtime.forward(input_ids, token_type_ids)
        for found, expected in zip(encoding.hidden_states, output.hidden_states, strict=True):
            np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-6)
        np.testing.assert_allclose(encoding.pooled, output.pooler_output[0].numpy(), atol=1e-6)


@pytest.mark.parametrize(("pairs", "head"), [("cross_encoder", ""), ("bi_encoder", "pair_")])
def test_packing_and_unpacking_keeps_every_bit(tiny_tokenizer, pairs: str, head: str) -> None:
    model = tiny_model(
        "bitbert",
        "BitBertForSequenceClassification",
        vocab_size=tiny_tokenizer.vocab_size,
        num_labels=2,
        id2label={0: "no", 1: "yes"},
        pairs=pairs,
    )
    packed = pack_model(model, tiny_tokenizer, max_length=32)
    assert (packed.config.head, packed.config.labels) == (f"{head}classification", ["no", "yes"])
    again = pack_model(unpack_model(packed), tiny_tokenizer, max_length=32)
    assert again.config == packed.config
    for name, tensor in packed.tensors.items():
        np.testing.assert_allclose(again.tensors[name], tensor, rtol=1e-6, err_msg=name)


def test_batch_with_padding_gives_what_single_texts_give(tiny_tokenizer) -> None:
    """The runtime never pads; torch with padding must answer the same."""
    model = tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size).double()
    ids = torch.randint(5, tiny_tokenizer.vocab_size, (2, 20))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).seq_relationship_logits[1]
        alone = model(ids[1:, :11]).seq_relationship_logits[0]
    assert torch.allclose(padded, alone, atol=1e-9)


@pytest.mark.parametrize(("pairs", "head"), [("cross_encoder", "regression"), ("bi_encoder", "pair_regression")])
def test_regression_head(tiny_tokenizer, pairs: str, head: str) -> None:
    model = tiny_model(
        "bipft-a", "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size, num_labels=1, pairs=pairs
    )
    packed = pack_model(model, tiny_tokenizer, max_length=32)
    (prediction,) = Runtime(packed).classify([("The river.", "The king.")])
    assert (packed.config.head, prediction.label) == (head, None)
    assert prediction.score == prediction.logits[0]
    assert unpack_model(packed).config.num_labels == 1


def test_encoder_without_head(tiny_tokenizer) -> None:
    model = tiny_model("bipft-a", vocab_size=tiny_tokenizer.vocab_size)
    packed = pack_model(model, tiny_tokenizer, max_length=32)
    names = [name for name in packed.tensors if name.startswith("bitbert.")]
    bare = replace(
        packed,
        config=replace(packed.config, head="none", labels=[]),
        tensors={name: packed.tensors[name] for name in names},
    )
    assert isinstance(unpack_model(bare), BitBertModel)
    with pytest.raises(UserError, match="no head to classify with"):
        Runtime(bare).classify(["The river."])
    assert Runtime(bare).encode(["The river.", ("The king.", "The queen.")]).shape == (2, 32)


def test_uncalibrated_model_is_refused(tiny_tokenizer) -> None:
    model = tiny_model("bipft-a", vocab_size=tiny_tokenizer.vocab_size)
    next(module for module in model.modules() if isinstance(module, Binarizer)).calibrated.fill_(False)
    with pytest.raises(UserError, match="step sizes of 1 binarizers"):
        pack_model(model, tiny_tokenizer, max_length=32)


def test_other_vocabulary_and_other_classes_are_refused(tiny_tokenizer) -> None:
    with pytest.raises(UserError, match="use the tokenizer the model was trained with"):
        pack_model(tiny_model("bipft-a", vocab_size=tiny_tokenizer.vocab_size + 1), tiny_tokenizer, max_length=32)
    with pytest.raises(UserError, match="cannot be packed"):
        pack_model(
            tiny_model("bipft-a", "BitBertForMaskedLM", vocab_size=tiny_tokenizer.vocab_size),
            tiny_tokenizer,
            max_length=32,
        )


def test_wrong_bits_are_caught_before_publication(tiny_tokenizer) -> None:
    model = tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size)
    packed = pack_model(model, tiny_tokenizer, max_length=32)
    wrong = dict(packed.tensors)
    wrong["bitbert.layers.0.output.weight_bits"] = wrong["bitbert.layers.0.output.weight_bits"][::-1].copy()
    with pytest.raises(UserError, match="was not published"):
        verify_packed(replace(packed, tensors=wrong), model)


def test_bits_that_latent_weights_cannot_hold(tiny_tokenizer) -> None:
    model = tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size)
    packed = pack_model(model, tiny_tokenizer, max_length=32)
    table = "bitbert.embeddings.word_embeddings"
    wrong = packed.tensors | {f"{table}.weight_bits": np.zeros_like(packed.tensors[f"{table}.weight_bits"])}
    with pytest.raises(UserError, match="nearly all of one sign"):
        unpack_model(replace(packed, tensors=wrong))
