"""Residual estimators, shared or one set a head: torch, numpy and every instruction set agree; how they start."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitbert.model import BitBertConfig, BitBertModel
from bitbert.packed import load_packed, save_packed, tensor_specs
from bitbert.runtime import Runtime
from bitbert.runtime.info import describe_checkpoint
from tests.conftest import TINY_SHAPE
from tests.runtime.conftest import ODD_SHAPE, MakePacked, assert_all_agree

CASES = [("shared", 3), ("per_head", 1), ("per_head", 3)]


@pytest.mark.parametrize(("estimators", "rank"), CASES)
def test_torch_numpy_and_native_agree(make_packed: MakePacked, estimators: str, rank: int) -> None:
    model, packed = make_packed("bipft-b", residual_estimators=estimators, residual_rank=rank, **ODD_SHAPE)
    assert_all_agree(model, packed, [1, 33, 70])


def test_heads_have_sets_of_their_own(make_packed: MakePacked, tmp_path: Path) -> None:
    """The file holds a set a head, and changing one head's set changes the answer."""
    _, packed = make_packed("bipft-b", residual_estimators="per_head", residual_rank=2, **ODD_SHAPE)
    name = "bitbert.layers.0.attention.estimator.query_residual.weight"
    assert tensor_specs(packed.config)[name] == ("float32", (3 * 2, 105))
    save_packed(tmp_path / "packed", packed, "card")
    assert ("residual estimators", "rank 2, one set a head") in describe_checkpoint(tmp_path / "packed")
    ids = list(range(5, 45))
    kept = Runtime.load(tmp_path / "packed").forward(ids, [0] * 40).hidden_states[1]
    loaded = load_packed(tmp_path / "packed")
    loaded.tensors[name][4:] *= 5  # the last head's
    assert not np.array_equal(Runtime(loaded).forward(ids, [0] * 40).hidden_states[1], kept)


@pytest.mark.parametrize("estimators", ["shared", "per_head"])
def test_zero_estimators_add_nothing_and_learn(estimators: str) -> None:
    fields = {"vocab_size": 50, "residual_estimators": estimators, "residual_init": "zero", "residual_rank": 2}
    torch.manual_seed(0)
    model = BitBertModel(BitBertConfig(**TINY_SHAPE, **fields))
    plain = BitBertModel(BitBertConfig(**TINY_SHAPE, **fields | {"residual_rank": 0}))
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(".estimator." in name for name in unexpected)
    ids = torch.randint(5, 50, (2, 12))
    model.eval(), plain.eval()
    assert torch.equal(model(ids).last_hidden_state, plain(ids).last_hidden_state)
    model(ids).last_hidden_state.square().sum().backward()
    estimator = model.layers[0].attention.estimator
    assert estimator.query_residual.weight.grad.abs().sum() > 0
    assert estimator.query_binary.weight.grad.abs().sum() > 0
    assert estimator.key_residual.weight.abs().sum() > 0


def test_normal_is_the_published_start() -> None:
    torch.manual_seed(0)
    model = BitBertModel(BitBertConfig(**TINY_SHAPE | {"hidden_size": 512}, vocab_size=50))
    weight = model.layers[0].attention.estimator.query_residual.weight
    assert weight.shape == (1, 512)
    assert weight.std().item() == pytest.approx(0.02, rel=0.2)
