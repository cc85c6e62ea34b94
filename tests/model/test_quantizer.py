"""Packed checkpoints through transformers: the same answers, the same bits, whatever is imported first."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, pipeline

import bitbert.model as models
from bitbert.errors import UserError
from bitbert.model.packed_layers import PackedEmbedding, PackedLinear
from bitbert.packed import PackedModel, load_packed, save_packed
from bitbert.runtime import Runtime
from tests.conftest import REPOSITORY, tiny_model
from tests.golden.make_golden import PACKED

IDS = [2, 40, 41, 42, 3]


def save(model: torch.nn.Module, tokenizer: object, folder: Path) -> PackedModel:
    from bitbert.model.export import pack_model

    packed = pack_model(model, tokenizer, max_length=32)
    save_packed(folder, packed, "card")
    return packed


@pytest.mark.parametrize("isa", ["portable", "numpy"])
@pytest.mark.parametrize("method", ["bipft-b", "bitbert"])
def test_packed_weights_answer_like_the_runtime(tiny_tokenizer, tmp_path, monkeypatch, method: str, isa: str) -> None:
    monkeypatch.setenv("BITBERT_ISA", isa)
    model = tiny_model(method, "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size)
    packed = save(model, tiny_tokenizer, tmp_path / "packed")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    with torch.no_grad():
        found, latent = (one(torch.tensor([IDS])).logits[0].numpy() for one in (loaded, model))
    np.testing.assert_allclose(found, latent, atol=1e-5)
    np.testing.assert_allclose(found, Runtime(packed).logits(IDS, [0] * len(IDS)), atol=1e-5)


def test_weights_stay_bits_and_padding_changes_nothing() -> None:
    model = AutoModelForSequenceClassification.from_pretrained(PACKED)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(PackedLinear) == 6 * model.config.num_hidden_layers + 1
    assert kinds.count(PackedEmbedding) == 1
    assert sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) < 13_000
    padded = torch.tensor([[*IDS, 0, 0], [2, 50, 51, 52, 53, 54, 3]])
    mask = (padded != 0).long()
    with torch.no_grad():
        alone, together = model(torch.tensor([IDS])).logits[0], model(padded, attention_mask=mask).logits[0]
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def test_labels_come_along_and_pipelines_run() -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(PACKED / "tokenizer.json"), pad_token="[PAD]")
    model = AutoModelForSequenceClassification.from_pretrained(PACKED)
    (answer,) = pipeline("text-classification", model=model, tokenizer=tokenizer)("the river")
    assert answer["label"] in load_packed(PACKED).config.labels


def test_other_heads_and_dtypes_load(tiny_tokenizer, tmp_path) -> None:
    model = tiny_model("bipft-b", "BitBertForPreTraining", vocab_size=tiny_tokenizer.vocab_size)
    packed = save(model, tiny_tokenizer, tmp_path / "packed")
    loaded = models.BitBertForNextSentencePrediction.from_pretrained(tmp_path / "packed")
    with torch.no_grad():
        logits = loaded(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits, Runtime(packed).logits(IDS, [0] * len(IDS)), atol=1e-5)
    encoder = AutoModel.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)
    assert encoder.layers[0].output.weight_bits.dtype == torch.uint8
    states = Runtime(packed).forward(IDS, [0] * len(IDS)).hidden_states[-1]
    found = encoder(torch.tensor([IDS])).last_hidden_state[0].detach().numpy()
    np.testing.assert_allclose(found, states, atol=1e-5)


def test_regression_keeps_its_single_output(tiny_tokenizer, tmp_path) -> None:
    model = tiny_model(
        "bipft-a", "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size, num_labels=1
    )
    save(model, tiny_tokenizer, tmp_path / "packed")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert loaded(torch.tensor([IDS])).logits.shape == (1, 1)


def test_saving_again_keeps_bits_and_bytes(tmp_path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(PACKED)
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    expected = Runtime.load(PACKED).logits(IDS, [0] * len(IDS))
    np.testing.assert_allclose(model(torch.tensor([IDS])).logits[0].detach().numpy(), expected, atol=1e-5)


def test_what_packed_weights_cannot_do_is_refused(tiny_tokenizer, tmp_path) -> None:
    with pytest.raises(UserError, match="has no masked-LM head"):
        AutoModelForMaskedLM.from_pretrained(PACKED)
    model = tiny_model("bipft-a", "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size)
    model.save_pretrained(tmp_path / "latent")
    with pytest.raises(UserError, match="pack it with bitbert-export"):
        AutoModel.from_pretrained(tmp_path / "latent", quantization_config=models.BitBertPackedConfig())


def test_the_op_follows_changed_weights_and_knows_its_shapes() -> None:
    layer = PackedLinear(70, 9, kind="signed", weight_scale="tensor")
    with torch.no_grad():
        for tensor in (layer.weight_scale, layer.input_binarizer.alpha):
            tensor.fill_(1)
        for tensor in (layer.bias, layer.shift, layer.weight_bits):
            tensor.zero_()
    x = torch.ones(2, 3, 70)
    assert (layer(x) == 70).all()
    layer.weight_bits[:, :8] = 255
    assert (layer(x) == 70 - 128).all()
    arguments = (x, layer.weight_bits, layer.weight_scale, layer.bias, layer.shift, layer.input_binarizer.alpha, False)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.bitbert.packed_linear.default, arguments, test_utils=checks)


@pytest.mark.parametrize(
    "code",
    [
        "import bitbert, sys; assert 'torch' not in sys.modules\nfrom transformers import AutoConfig",
        "import bitbert; from transformers import AutoTokenizer, pipeline, AutoModel, AutoConfig",
        "from transformers import AutoModel, AutoConfig; import bitbert.runtime",
    ],
)
def test_import_bitbert_registers_in_any_order(code: str) -> None:
    check = f"{code}\nprint(AutoConfig.from_pretrained({str(PACKED)!r}).model_type)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert result.stdout.strip() == "bitbert", result.stderr
