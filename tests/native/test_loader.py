"""The C loader on files that are wrong in one way each: a sentence that says which."""

import ctypes
import json
import re
import struct
from collections.abc import Callable
from typing import Any

import pytest

from bitbert.packed import CONFIG_FILE, WEIGHTS_FILE
from bitbert.runtime.native import load_library
from tests.golden.make_golden import PACKED

CONFIG = json.loads((PACKED / CONFIG_FILE).read_text(encoding="utf-8"))
WEIGHTS = (PACKED / WEIGHTS_FILE).read_bytes()
BIAS = "classifier.bias"


def split(weights: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", weights[:8])[0]
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def join(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def error_of(config: dict[str, Any] | bytes, weights: bytes) -> str:
    """What bitbert_open_memory says; "" when it opens."""
    library = load_library()
    assert library is not None
    library.bitbert_open_memory.restype = ctypes.c_void_p
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    model = library.bitbert_open_memory(text, ctypes.c_size_t(len(text)), weights, ctypes.c_size_t(len(weights)), None)
    if not model:
        return library.bitbert_error().decode()
    library.bitbert_close(model)
    return ""


def test_the_whole_file_opens_however_its_header_is_padded() -> None:
    header, data = split(WEIGHTS)
    text = json.dumps(header).encode()
    for padding in range(8):
        assert error_of(CONFIG, join(text + b" " * padding, data)) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "is not of format bitbert-packed version 2"),
        ({"format": "other"}, "is not of format bitbert-packed version 2"),
        ({"hidden_size": "48"}, "hidden_size is missing or is not a whole number"),
        ({"hidden_size": 2**31}, "hidden_size is missing or is not a whole number"),
        ({"hidden_size": -1}, "hidden_size is missing or is not a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, wanted 1 to"),
        ({"num_attention_heads": 5}, "is not a multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 1}, "has 384 bytes, wanted 192; the weights do not fit the config"),
        ({"hidden_act": "swish"}, "hidden_act is missing or is not one that this version knows"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps is missing or is not a number"),
        ({"layer_norm_eps": 2.0}, r"layer_norm_eps is 2, wanted a number in \[0, 1\)"),
        ({"layer_norm_eps": 10}, "layer_norm_eps is 10, wanted"),
        ({"layer_norm_eps": -0.125}, "layer_norm_eps is -0.125, wanted"),
        ({"layer_norm_eps": -1.5e-12}, "layer_norm_eps is -1.5e-12, wanted"),
        ({"layer_norm_eps": 3.25e20}, r"layer_norm_eps is 3.25e\+20, wanted"),
        ({"labels": 3}, "labels are missing or are not a list"),
        ({"labels": ["one"]}, f"tensor {BIAS} has 12 bytes, wanted 4|classifier.weight has"),
        ({"head": "pair_classification"}, "tensor classifier.weight has 288 bytes, wanted 1152"),
        (
            {"head": "pair_regression"},
            "tensor classifier.weight has 288 bytes, wanted 384",
        ),
        ({"head": "pair_classification", "type_vocab_size": 1}, "type_vocab_size is 1, wanted 2 to"),
        ({"head": "none"}, r"there are \d+ tensors, wanted"),
    ],
)
def test_configs_are_refused(change: dict[str, Any], message: str) -> None:
    assert re.search(message, error_of(CONFIG | change, WEIGHTS))


@pytest.mark.parametrize("text", ["1.", "0.5e", "1e-", "1e+x", "-", "1,5", "0.1.2", "0x1", "-.5"])
def test_what_begins_as_a_number_and_is_none_is_refused(text: str) -> None:
    config = json.dumps(CONFIG | {"layer_norm_eps": "EPS"}).replace('"EPS"', text)
    assert re.search("layer_norm_eps is '.*', wanted a number|not valid JSON", error_of(config.encode(), WEIGHTS))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "it ends too early"),
        (b"{", "a key is not a string"),
        (b'{"a" 1}', "a key has no value"),
        (b'{"a": 1 "b"', "a comma or closing bracket is missing"),
        (b'{"a": "b', "a string does not end"),
        (b'{"a": "\n"}', "a string holds a control character"),
        (b'{"a": nul}', "there is something that is not a value"),
        (b"[" * 100, "it is nested too deeply"),
        (b"{} x", "something follows its end"),
        (b'{"a": ' + b"1" * 65 + b"}", "a number has more than 64 characters"),
    ],
)
def test_broken_json_is_refused(text: bytes, problem: str) -> None:
    assert f"config.json is not valid JSON: {problem}" in error_of(text, WEIGHTS)
    assert f"the header of model.safetensors is not valid JSON: {problem}" in error_of(CONFIG, join(text, b""))


def change_entry(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[BIAS].update(fields)


def overlap(header: dict[str, Any]) -> None:
    """Moves one tensor by a value, over its neighbour."""
    begin, end = header[BIAS]["data_offsets"]
    step = -4 if begin else 4
    header[BIAS]["data_offsets"] = [begin + step, end + step]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop(BIAS), "leave bytes unused"),
        (overlap, "tensors overlap or leave bytes unused"),
        (change_entry(dtype="F64"), f"tensor {BIAS} is of type F64, wanted F32 or U8"),
        (change_entry(dtype="U8", shape=[12]), f"tensor {BIAS} is of the wrong type"),
        (change_entry(shape=[4]), f"tensor {BIAS} do not lie in the file or are not as many"),
        (change_entry(shape=[2**40, 2**40]), f"the shape of tensor {BIAS} is not one that fits"),
        (change_entry(data_offsets=[0]), f"tensor {BIAS} has no dtype, shape and two data_offsets"),
        (change_entry(data_offsets=[2**50, 2**50 + 12]), f"tensor {BIAS} do not lie in the file"),
        (lambda header: header.update({"x": header.pop(BIAS)}), f"tensor {BIAS} is missing"),
    ],
)
def test_weights_are_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    header, data = split(WEIGHTS)
    change(header)
    assert re.search(message, error_of(CONFIG, join(header, data)))


def test_cut_off_files_are_refused() -> None:
    for length in (0, 7, 8, 100, len(WEIGHTS) - 1):
        assert error_of(CONFIG, WEIGHTS[:length])
    assert "leave bytes unused" in error_of(CONFIG, WEIGHTS + b"\0")


def test_values_that_cannot_be_are_refused() -> None:
    header, data = split(WEIGHTS)
    begin, _ = header[BIAS]["data_offsets"]
    poisoned = data[:begin] + struct.pack("<f", float("inf")) + data[begin + 4 :]
    assert f"tensor {BIAS} holds inf, wanted finite values" in error_of(CONFIG, join(header, poisoned))
    alpha = next(name for name in header if name.endswith(".alpha"))
    begin, _ = header[alpha]["data_offsets"]
    zeroed = data[:begin] + struct.pack("<f", 0.0) + data[begin + 4 :]
    first = alpha.replace("layers.", "layers.0.")
    assert f"tensor {first} holds 0, wanted finite values above 0" in error_of(CONFIG, join(header, zeroed))
    bits = "bitbert.pooler.dense.weight_bits"
    _, end = header[bits]["data_offsets"]
    padded = data[: end - 1] + b"\x80" + data[end:]
    assert f"tensor {bits} has bits set beyond column" in error_of(CONFIG, join(header, padded))
