"""Latent weights made from bits: the same function, and magnitudes that training can move over zero."""

import numpy as np
import pytest
import torch

from bitbert.model.export import pack_model, unpack_model
from bitbert.model.latent import spread_latent_weights
from bitbert.model.linear import BinaryEmbedding, BinaryLinear
from bitbert.packed import PackedModel
from bitbert.tokenizer import Tokenizer
from tests.conftest import tiny_model

IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def packed_tiny(method: str, tokenizer: Tokenizer) -> PackedModel:
    return pack_model(tiny_model(method, vocab_size=tokenizer.vocab_size), tokenizer, max_length=32)


@pytest.mark.parametrize("method", ["bipft-b", "bitbert", "bibert"])  # a scale a matrix, a row, and centred rows
def test_the_function_stays(method: str, tiny_tokenizer: Tokenizer) -> None:
    packed = packed_tiny(method, tiny_tokenizer)
    plain, spread = unpack_model(packed).eval(), unpack_model(packed).eval()
    spread_latent_weights(spread, seed=0)
    with torch.no_grad():
        assert torch.allclose(spread(IDS).logits, plain(IDS).logits, atol=1e-5)
    again = pack_model(spread, tiny_tokenizer, max_length=32)
    for name, tensor in packed.tensors.items():
        if name.endswith(".weight_bits"):
            assert np.array_equal(again.tensors[name], tensor), name
        else:
            np.testing.assert_allclose(again.tensors[name], tensor, rtol=1e-5, err_msg=name)


def test_magnitudes_are_half_normal_and_repeatable(tiny_tokenizer: Tokenizer) -> None:
    packed = packed_tiny("bipft-b", tiny_tokenizer)
    models = [unpack_model(packed) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        spread_latent_weights(model, seed)
    weights = [model.get_submodule("bitbert.layers.0.intermediate").weight.detach() for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    ratios = (weights[0].abs() / weights[0].abs().mean()).flatten()
    # Of |z| with mean 1: quartiles 0.40, 0.85, 1.44. 2,048 draws.
    assert torch.quantile(ratios, torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([0.4, 0.85, 1.44], abs=0.1)


def test_rows_of_one_sign_stay_as_they_are() -> None:
    linear = BinaryLinear(64, 8, kind="signed", weight_scale="channel")
    table = BinaryEmbedding(8, 64)
    for module in (linear, table):
        signs = torch.where(torch.rand(8, 64, generator=torch.Generator().manual_seed(1)) < 0.5, -0.1, 0.1)
        module.weight.data.copy_(signs)
        module.weight.data[3] = 0.1
    before = linear.weight.detach().clone()
    spread_latent_weights(torch.nn.ModuleList([table]), seed=0)
    assert torch.equal(table.weight[3], before[3])
    assert table.weight[2].abs().std() > 0
    # Seven such rows move the matrix's mean so far that small weights would change sign: nothing is touched.
    linear.weight.data[:7] = 0.1
    kept = linear.weight.detach().clone()
    spread_latent_weights(torch.nn.ModuleList([linear]), seed=0)
    assert torch.equal(linear.weight, kept)
