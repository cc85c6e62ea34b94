"""The numpy reference: bit products against plain ones, float parts against torch, and refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.errors import UserError
from bitbert.runtime import Runtime
from bitbert.runtime.elementwise import gelu, layer_norm, softmax
from bitbert.runtime.numpy_bitops import mask_products, pack_words, sign_products
from tests.conftest import run_module
from tests.golden.make_golden import PACKED


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    width=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_equal_plain_products(rows: int, columns: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left, right = random.random((rows, width)) < 0.5, random.random((columns, width)) < 0.5
    signs = np.where(right, -1, 1)
    assert np.array_equal(sign_products(pack_words(left), pack_words(right), width), np.where(left, -1, 1) @ signs.T)
    assert np.array_equal(mask_products(pack_words(left), pack_words(right)), left.astype(int) @ signs.T)


def test_products_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    left, right = (pack_words(random.random((37, 130)) < 0.5) for _ in range(2))
    whole = sign_products(left, right, 130)
    monkeypatch.setattr("bitbert.runtime.numpy_bitops._BLOCK_WORDS", 1)
    assert np.array_equal(sign_products(left, right, 130), whole)


def test_float_parts_equal_torch() -> None:
    random = np.random.default_rng(0)
    x = random.normal(0, 3, (5, 64)).astype(np.float32)
    weight, bias = random.normal(size=(2, 64)).astype(np.float32)
    tensor = torch.from_numpy(x).double()
    np.testing.assert_allclose(gelu(x), torch.nn.functional.gelu(tensor).numpy(), atol=1e-6)
    np.testing.assert_allclose(softmax(x), tensor.softmax(-1).numpy(), rtol=1e-5)
    expected = torch.nn.functional.layer_norm(
        tensor, (64,), torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), 1e-12
    )
    np.testing.assert_allclose(layer_norm(x, weight, bias, 1e-12), expected.numpy(), atol=1e-5)


def test_gelu_tail_keeps_relative_precision() -> None:
    x = np.linspace(-13, -1, 2001)
    expected = x * 0.5 * torch.special.erfc(torch.from_numpy(-x / np.sqrt(2))).numpy()
    np.testing.assert_allclose(gelu(x), expected, rtol=1e-8)


def test_bad_sequences_are_refused() -> None:
    runtime = Runtime.load(PACKED)
    for ids, message in (
        ([], "wanted 1 to 16"),
        ([5] * 17, "wanted 1 to 16"),
        ([10**6], "wanted 0 to"),
        ([-1], "wanted 0 to"),
    ):
        with pytest.raises(UserError, match=message):
            runtime.forward(ids, [0] * len(ids))


def test_long_texts_are_cut_and_answers_stream() -> None:
    runtime = Runtime.load(PACKED)
    long_text = "river " * 100
    (long,), (cut,) = runtime.classify([long_text]), runtime.classify(["river " * 14])
    assert long == cut
    assert next(runtime.stream([("the river", "the king"), "never reached"])).label in runtime.config.labels


def test_predict_door() -> None:
    single = run_module("bitbert.runtime", PACKED, "the river")
    pair = run_module("bitbert.runtime", PACKED, "the river", "the king")
    assert single.returncode == pair.returncode == 0
    assert single.stdout.split()[0] in ("negative", "positive", "neutral")
    assert single.stdout != pair.stdout
    help_text = run_module("bitbert.runtime", "--help")
    assert "Example: bitbert-predict" in help_text.stdout


def test_predict_door_refuses_in_one_line(tmp_path) -> None:
    result = run_module("bitbert.runtime", tmp_path, "text")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
