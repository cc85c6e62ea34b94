"""Random packed models of any shape, with parameters far from their initial values."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from bitbert.packed import PackedModel
from bitbert.runtime.native import NativeModel, instruction_sets
from bitbert.runtime.reference import ReferenceModel
from bitbert.tokenizer import Tokenizer
from tests.conftest import tiny_model

METHODS = ("bipft-b", "bipft-a", "baseline", "bitbert")
ODD_SHAPE = {
    "hidden_size": 105,
    "num_attention_heads": 3,
    "intermediate_size": 70,
    "max_position_embeddings": 512,
}
"""Nothing is a multiple of a word: heads of 35, rows of 105 and 70 bits."""

MakePacked = Callable[..., tuple[Any, PackedModel]]


@pytest.fixture(scope="session")
def make_packed(tiny_tokenizer: Tokenizer) -> MakePacked:
    """``make_packed(method, **fields)`` -> (torch model, packed model); the same arguments give the same model."""
    from bitbert.model.export import pack_model

    @cache
    def make(method: str, spread: float = 0.1, **fields: object) -> tuple[Any, PackedModel]:
        import torch

        model = tiny_model(method, "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size, **fields)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith((".bias", ".shift")):
                    parameter.normal_(0, spread)
        return model, pack_model(model, tiny_tokenizer, max_length=model.config.max_position_embeddings)

    return make


def sequences(lengths: list[int], vocab_size: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random ids and token types of sequences of these lengths."""
    random = np.random.default_rng(seed)
    ids = [random.integers(0, vocab_size, length) for length in lengths]
    return ids, [np.arange(length) >= length // 2 for length in lengths]


def assert_all_agree(model: Any, packed: PackedModel, lengths: list[int]) -> None:
    """Torch's ``model``, numpy and every instruction set of this machine answer alike, to rounding."""
    import torch

    ids, types = sequences(lengths, packed.config.vocab_size)
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


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[None]:
    """As on a machine where no compiler built the native library."""
    from bitbert.runtime import native

    monkeypatch.setattr(native, "LIBRARY", native.LIBRARY.with_name("absent.so"))
    native.load_library.cache_clear()
    yield
    native.load_library.cache_clear()
