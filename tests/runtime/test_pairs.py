"""Heads for two texts that are encoded apart: torch, numpy, every instruction set; and from vectors made before."""

import ctypes
import json

import numpy as np
import pytest

from bitbert.errors import UserError
from bitbert.packed import PackedModel, save_packed
from bitbert.runtime import Runtime
from bitbert.runtime.native import NativeModel, instruction_sets, load_library
from bitbert.runtime.reference import ReferenceModel
from tests.runtime.conftest import ODD_SHAPE, MakePacked, assert_all_agree, sequences

TEXTS = ("The old king reads a letter.", "A queen paints the harbor near the bridge.")


@pytest.fixture
def packed(make_packed: MakePacked) -> PackedModel:
    return make_packed("bitbert", num_labels=3, pairs="bi_encoder", **ODD_SHAPE)[1]


def numpy_and_native(packed: PackedModel) -> list[ReferenceModel | NativeModel]:
    return [ReferenceModel(packed), *(NativeModel(packed.config, packed.tensors, isa) for isa in instruction_sets())]


@pytest.mark.parametrize("method", ["bipft-b", "bitbert", "bibert"])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_torch_numpy_and_every_instruction_set_agree(make_packed: MakePacked, method: str, num_labels: int) -> None:
    model, packed = make_packed(method, num_labels=num_labels, pairs="bi_encoder", **ODD_SHAPE)
    assert_all_agree(model, packed, [2, 3, 40, 65, 130])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_logits_are_those_of_the_texts_own_vectors(packed: PackedModel, num_threads: int) -> None:
    """What lets a user encode a million texts once: the head needs nothing but both mean states."""
    runtime = Runtime(packed, num_threads=num_threads)
    first, second = runtime.encode(TEXTS)
    u, v = (mean / np.sqrt((mean**2).mean()) for mean in (first, second))
    seen = np.concatenate([u, v, abs(u - v), u * v])
    expected = packed.tensors["classifier.weight"] @ seen + packed.tensors["classifier.bias"]
    (prediction,) = runtime.classify([TEXTS])
    np.testing.assert_allclose(prediction.logits, expected, atol=2e-5)
    (same, turned) = runtime.compare(np.stack([first, second]), np.stack([second, first]))
    np.testing.assert_allclose(same.logits, expected, atol=2e-5)
    assert same.label == prediction.label
    np.testing.assert_allclose(turned.logits, runtime.classify([TEXTS[::-1]])[0].logits, atol=2e-5)


def test_neither_the_batch_nor_other_outputs_change_an_answer(packed: PackedModel) -> None:
    ids, types = sequences([7, 2, 90, 33], packed.config.vocab_size)
    alone = [ReferenceModel(packed).run([ids[i]], [types[i]], ("logits",))["logits"][0] for i in range(len(ids))]
    expected = ReferenceModel(packed).run(ids, types, ("states", "last", "pooled"))
    for model in numpy_and_native(packed):
        found = model.run(ids, types, ("states", "last", "pooled", "logits"))
        np.testing.assert_allclose(found["logits"], np.stack(alone), atol=2e-5)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=2e-5, err_msg=name)


def test_order_of_the_texts_counts_and_width_does_not_leak(packed: PackedModel) -> None:
    """Swapped texts swap u and v, and nothing else: with a symmetric head the answer stays."""
    hidden = packed.config.hidden_size
    weight = packed.tensors["classifier.weight"].copy()
    weight[:, : 2 * hidden] = 0
    symmetric = PackedModel(packed.config, packed.tensors | {"classifier.weight": weight}, packed.tokenizer)
    for model, same in ((packed, False), (symmetric, True)):
        there, back = (answer.logits for answer in Runtime(model).classify([TEXTS, TEXTS[::-1]]))
        assert np.allclose(there, back, atol=1e-5) is same


@pytest.mark.parametrize("types", [[0, 0, 0], [1, 1, 1], [1, 0, 0]])
def test_a_sequence_of_one_text_is_refused(packed: PackedModel, types: list[int]) -> None:
    for model in numpy_and_native(packed):
        with pytest.raises(UserError, match="a sequence without a second text, wanted token types 0 and then 1"):
            model.run([[2, 7, 3]], [types], ("logits",))
        assert model.run([[2, 7, 3]], [types], ("pooled",))["pooled"].shape == (1, packed.config.hidden_size)


def test_a_single_text_is_refused_before_any_is_answered(packed: PackedModel) -> None:
    with pytest.raises(UserError, match=r"text 'The king\.' is alone, and this checkpoint compares two texts"):
        Runtime(packed).classify([TEXTS, "The king."])
    assert Runtime(packed).encode(["The king."]).shape == (1, packed.config.hidden_size)


def test_vectors_that_are_none_and_other_heads_are_refused(packed: PackedModel, make_packed: MakePacked) -> None:
    hidden = packed.config.hidden_size
    for first, second in (((2, hidden), (1, hidden)), ((2, hidden + 1),) * 2, ((hidden,),) * 2):
        with pytest.raises(UserError, match=rf"vectors of shapes .*, wanted \(pairs, {hidden}\) twice"):
            Runtime(packed).compare(np.zeros(first), np.zeros(second))
    _, other = make_packed("bitbert", num_labels=3)
    with pytest.raises(UserError, match="has head 'classification', wanted one for pairs; finetune with pairs=bi_enc"):
        Runtime(other).compare(np.zeros((1, 32)), np.zeros((1, 32)))


def test_the_c_loader_opens_the_file(packed: PackedModel, tmp_path, make_packed: MakePacked) -> None:
    library = load_library()
    assert library is not None
    library.bitbert_open.restype = ctypes.c_void_p
    for name, model in (("classes", packed), ("score", make_packed("bitbert", num_labels=1, pairs="bi_encoder")[1])):
        save_packed(tmp_path / name, model, "# card\n")
        assert json.loads((tmp_path / name / "config.json").read_text())["head"].startswith("pair_")
        handle = library.bitbert_open(str(tmp_path / name).encode(), None)
        assert handle, library.bitbert_error()
        library.bitbert_close(handle)
