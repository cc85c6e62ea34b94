"""The packed format: golden bytes, a reader written from the specification alone, and refusals."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from bitbert.errors import UserError
from bitbert.files import sha256_file
from bitbert.packed import (
    PackedModel,
    binary_matrices,
    checkpoint_bytes,
    load_packed,
    pack_bits,
    row_bytes,
    save_packed,
    stack_layers,
    tensor_specs,
    unpack_bits,
)
from bitbert.runtime import Runtime
from tests.golden.make_golden import CARD, HEADS, PACKED, golden_model

WEIGHTS = "model.safetensors"


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 200))))
def test_bits_survive(negative: np.ndarray) -> None:
    packed = pack_bits(negative)
    assert packed.shape == (len(negative), row_bytes(negative.shape[1]))
    assert np.array_equal(unpack_bits(packed, negative.shape[1]), negative)
    assert int(np.bitwise_count(packed).sum()) == int(negative.sum())  # padding bits are zero


def test_bit_order_is_little_endian() -> None:
    negative = np.zeros((1, 70), bool)
    negative[0, [0, 9, 69]] = True
    assert pack_bits(negative)[0].tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 1 << 5, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("golden", HEADS)
def test_golden_bytes(tmp_path: Path, tiny_tokenizer_folder: Path, golden: Path) -> None:
    """Writing the same model gives the same bytes, file by file."""
    save_packed(tmp_path / "again", golden_model(tiny_tokenizer_folder, HEADS[golden]), CARD)
    for file in sorted(golden.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert checkpoint_bytes(golden) == sum(file.stat().st_size for file in golden.iterdir())


@pytest.mark.parametrize("golden", HEADS)
def test_golden_checkpoint_answers_as_it_did(golden: Path) -> None:
    answers = json.loads(Path(f"{golden}-answers.json").read_text(encoding="utf-8"))
    predictions = Runtime.load(golden).classify([answer["text"] for answer in answers])
    for answer, prediction in zip(answers, predictions, strict=True):
        assert prediction.logits == pytest.approx(answer["logits"], abs=1e-5)


def test_reader_from_the_specification_alone() -> None:
    """docs/format.md is enough: standard library only, no code of ours, and the same weights."""
    for line in (PACKED / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((PACKED / name).read_bytes()).hexdigest() == digest
    config = json.loads((PACKED / "config.json").read_text())
    raw = (PACKED / WEIGHTS).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + header_bytes])
    index, layers = 1, config["num_hidden_layers"]

    def tensor(kind: str) -> tuple[list[int], bytes]:
        """The layer's part of a tensor that holds all layers'."""
        entry = header[f"bitbert.layers.{kind}"]
        start, end = entry["data_offsets"]
        size = (end - start) // layers
        start += 8 + header_bytes + index * size
        assert entry["shape"][0] == layers
        return entry["shape"][1:], raw[start : start + size]

    (rows, stride), bits = tensor("output.weight_bits")
    (scale,) = struct.unpack("<f", tensor("output.weight_scale")[1])
    columns = config["intermediate_size"]
    assert stride == (columns + 63) // 64 * 8
    decoded = [
        [-scale if bits[row * stride + column // 8] >> (column % 8) & 1 else scale for column in range(columns)]
        for row in range(rows)
    ]
    tensors, name = load_packed(PACKED).tensors, f"bitbert.layers.{index}.output"
    ours = np.where(unpack_bits(tensors[f"{name}.weight_bits"], columns), -1, 1) * tensors[f"{name}.weight_scale"]
    assert np.array_equal(np.array(decoded, np.float32), ours.astype(np.float32))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKED, tmp_path / "copy")
    return tmp_path / "copy"


def resign(folder: Path) -> None:
    """Make the hashes right again, as an attacker would."""
    names = [file.name for file in sorted(folder.iterdir()) if file.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text(
        "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names), encoding="utf-8"
    )


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "was altered or cut off"),
        (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]),
            "was altered or cut off",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the folder has"),
        (lambda folder: (folder / "extra.bin").write_bytes(b"x"), "the folder has"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "is not a packed checkpoint"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "does not list config.json"),
    ],
)
def test_altered_files_are_refused(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message):
        load_packed(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "version 1, wanted 'bitbert-packed' version 2"),
        ({"format": "other"}, "wanted 'bitbert-packed'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"residual_rank": -1}, "residual_rank is -1"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"pooler": "mean"}, "pooler is 'mean', wanted one of plain, residual_norm"),
        ({"max_length": 17}, "above max_position_embeddings"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
        ({"layer_norm_eps": True}, "layer_norm_eps is True"),
        ({"labels": ["only"]}, "at least two strings"),
        ({"labels": "two"}, "at least two strings"),
        ({"head": "nsp"}, "wanted a list of two strings for head 'nsp'"),
        ({"head": "none"}, "wanted an empty list for head 'none'"),
        ({"head": "regression"}, "wanted an empty list for head 'regression'"),
        ({"head": "pair_regression"}, "wanted an empty list for head 'pair_regression'"),
        ({"head": "pair_classification"}, r"classifier.weight is float32 .* wanted float32 \(3, 96\)"),
        ({"head": "pair_classification", "type_vocab_size": 1}, "type_vocab_size is 1, wanted at least 2 for pairs"),
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers is 2147483647, wanted an integer from 1 to 4096"),
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
        ({"tokenizer": {}}, "wanted vocab_size"),
        ({"num_hidden_layers": 3}, "wanted 3 layers first"),
        ({"intermediate_size": 80}, "wanted uint8"),
    ],
)
def test_wrong_configs_are_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    resign(copy)
    with pytest.raises(UserError, match=message):
        load_packed(copy)


def wrong_tensors(model: PackedModel) -> list[tuple[dict[str, np.ndarray | None], str]]:
    bits = model.tensors["bitbert.pooler.dense.weight_bits"].copy()
    bits[0, 3] = 1  # column 24 of 24
    bias = model.tensors["classifier.bias"]
    return [
        ({"classifier.bias": None}, "missing tensors"),
        ({"extra": bias}, "unexpected tensors"),
        ({"classifier.bias": bias.astype(np.float64)}, "wanted float32"),
        ({"classifier.bias": bias[:-1]}, r"wanted float32 \(3,\)"),
        ({"classifier.bias": bias * np.float32("nan")}, "not finite"),
        ({"bitbert.pooler.dense.weight_scale": np.zeros(1, np.float32)}, "wanted scales above 0"),
        ({"bitbert.pooler.dense.weight_bits": bits}, "bits set beyond column 24"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_wrong_tensors_are_refused_on_reading_and_writing(copy: Path, tmp_path: Path, case: int) -> None:
    model = load_packed(PACKED)
    change, message = wrong_tensors(model)[case]
    tensors = {name: tensor for name, tensor in (model.tensors | change).items() if tensor is not None}
    save_file(stack_layers(tensors), copy / WEIGHTS, {"format": "pt"})
    resign(copy)
    with pytest.raises(UserError, match=message):
        load_packed(copy)
    with pytest.raises(UserError, match=message):
        save_packed(tmp_path / "out", replace(model, tensors=tensors), CARD)
    assert not (tmp_path / "out").exists()


def test_a_config_that_asks_for_more_than_there_is_costs_nothing(copy: Path) -> None:
    """Its layers are not counted one by one before the weights are looked at, whatever their number."""
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2**31 - 1}), encoding="utf-8")
    save_file({"classifier.bias": np.zeros(3, np.float32)}, copy / WEIGHTS, {"format": "pt"})
    resign(copy)
    with pytest.raises(UserError, match="num_hidden_layers is 2147483647"):
        load_packed(copy)


def test_a_next_sentence_head_without_labels_is_refused_on_reading(copy: Path) -> None:
    """Its answer would have no name."""
    model = load_packed(PACKED)
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("classifier.")}
    tensors |= {f"nsp_head.{part}": model.tensors[f"classifier.{part}"][:2] for part in ("weight", "bias")}
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    save_file(stack_layers(tensors), copy / WEIGHTS, {"format": "pt"})
    for labels in ([], ["is_next"], ["is_next", "not_next", "unknown"]):
        (copy / "config.json").write_text(json.dumps(config | {"head": "nsp", "labels": labels}), encoding="utf-8")
        resign(copy)
        with pytest.raises(UserError, match="wanted a list of two strings for head 'nsp'"):
            load_packed(copy)
    (copy / "config.json").write_text(
        json.dumps(config | {"head": "nsp", "labels": ["is_next", "not_next"]}), encoding="utf-8"
    )
    resign(copy)
    assert Runtime.load(copy).classify([("river", "castle")])[0].label in ("is_next", "not_next")


def test_a_folder_inside_of_a_checkpoint_is_refused(copy: Path) -> None:
    (copy / "more").mkdir()
    with pytest.raises(UserError, match="the folder has"):
        load_packed(copy)
    with open(copy / "SHA256SUMS", "a", encoding="utf-8") as file:
        file.write(f"{'0' * 64}  more\n")
    with pytest.raises(UserError, match="more' is no file"):
        load_packed(copy)


def test_garbage_with_right_hashes(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes(b"\xff" * 64)
    resign(copy)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_packed(copy)


def test_other_tokenizer_is_refused(copy: Path) -> None:
    text = (copy / "tokenizer.json").read_text(encoding="utf-8")
    (copy / "tokenizer.json").write_text(text.replace('"river"', '"rivers"'), encoding="utf-8")
    resign(copy)
    with pytest.raises(UserError, match=r"tokenizer in .* has fingerprint"):
        load_packed(copy)


def test_specs_name_every_stored_tensor() -> None:
    model = load_packed(PACKED)
    found = {name: (str(tensor.dtype), tensor.shape) for name, tensor in model.tensors.items()}
    assert found == tensor_specs(model.config)
    assert all(f"{name}.weight_bits" in found for name in binary_matrices(model.config))
    stored = load_file(PACKED / WEIGHTS)
    assert len(stored) < len(found)
    bias = stored["bitbert.layers.output.bias"]
    assert bias.shape == (model.config.num_hidden_layers, model.config.hidden_size)
    assert np.array_equal(bias[1], model.tensors["bitbert.layers.1.output.bias"])
