"""Bi-Attention: torch, numpy and every instruction set agree, at the score 0 and beyond a word of keys."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from bitbert.errors import UserError
from bitbert.packed import parse_config, save_packed
from bitbert.runtime.native import NativeModel, instruction_sets
from bitbert.runtime.reference import ReferenceModel
from tests.runtime.conftest import ODD_SHAPE, MakePacked, sequences

EVEN_HEADS = ODD_SHAPE | {"hidden_size": 96, "num_attention_heads": 3}  # heads of 32: many scores are 0


@pytest.mark.parametrize("shape", [ODD_SHAPE, EVEN_HEADS], ids=["odd", "even"])
@pytest.mark.parametrize("attention", ["bi", "bi_strict"])
def test_torch_numpy_and_native_agree(make_packed: MakePacked, attention: str, shape: dict[str, int]) -> None:
    model, packed = make_packed("bibert", attention=attention, **shape)
    ids, types = sequences([1, 31, 32, 33, 70], packed.config.vocab_size)
    wanted = ("states", "logits")
    expected = ReferenceModel(packed).run(ids, types, wanted)
    for isa in instruction_sets():
        found = NativeModel(packed.config, packed.tensors, isa).run(ids, types, wanted)
        for name in wanted:
            np.testing.assert_allclose(found[name], expected[name], atol=2e-5, rtol=0, err_msg=f"{isa} {name}")
    for index in range(len(ids)):
        inputs = torch.from_numpy(ids[index])[None], torch.from_numpy(types[index]).long()[None]
        with torch.no_grad():
            logits = model(input_ids=inputs[0], token_type_ids=inputs[1]).logits[0].numpy()
        np.testing.assert_allclose(logits, expected["logits"][index], atol=1e-4, rtol=0)


def test_the_score_zero_decides(make_packed: MakePacked) -> None:
    """Two models that differ in nothing but the bool at 0 give different answers."""
    _, packed = make_packed("bibert", **EVEN_HEADS)
    _, strict = make_packed("bibert", attention="bi_strict", **EVEN_HEADS)
    assert all(np.array_equal(packed.tensors[name], strict.tensors[name]) for name in packed.tensors)
    ids, types = sequences([40], packed.config.vocab_size)
    first, second = (ReferenceModel(model).run(ids, types, ("last",))["last"] for model in (packed, strict))
    assert not np.allclose(first, second)


def test_packed_weights_in_transformers(make_packed: MakePacked, tmp_path) -> None:
    model, packed = make_packed("bibert", **EVEN_HEADS)
    save_packed(tmp_path / "packed", packed, "card")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert loaded.config.attention == "bi"
    ids = torch.tensor([[2, 40, 41, 42, 3]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_estimators_are_refused(make_packed: MakePacked) -> None:
    _, packed = make_packed("bibert", **EVEN_HEADS)
    with pytest.raises(UserError, match="residual_rank is 1 with attention 'bi', wanted 0"):
        parse_config({**vars(packed.config), "residual_rank": 1}, "config.json")
