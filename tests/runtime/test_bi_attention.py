"""Bi-Attention: torch, numpy and every instruction set agree, at the score 0 and beyond a word of keys."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from bitbert.errors import UserError
from bitbert.packed import parse_config, save_packed
from bitbert.runtime.reference import ReferenceModel
from tests.runtime.conftest import ODD_SHAPE, MakePacked, assert_all_agree, sequences

EVEN_HEADS = ODD_SHAPE | {"hidden_size": 96, "num_attention_heads": 3}  # heads of 32: many scores are 0


@pytest.mark.parametrize("shape", [ODD_SHAPE, EVEN_HEADS], ids=["odd", "even"])
@pytest.mark.parametrize("attention", ["bi", "bi_strict"])
def test_torch_numpy_and_native_agree(make_packed: MakePacked, attention: str, shape: dict[str, int]) -> None:
    model, packed = make_packed("bibert", attention=attention, **shape)
    assert_all_agree(model, packed, [1, 31, 32, 33, 70])


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
