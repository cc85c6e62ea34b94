"""Contract 3: the packed 1-bit checkpoint. numpy and safetensors only; docs/format.md is the specification.

A checkpoint is a folder: ``config.json``, ``model.safetensors``, the tokenizer's file, ``README.md`` (model card)
and ``SHA256SUMS``. Binary matrices hold one bit a weight: bit 1 = negative, little-endian bits in a byte, each row
padded with zero bits to a multiple of 64. Everything else is float32. Tensors have the names they have in the torch
model, but the file holds those of all layers as one: ``bitbert.layers.N.KIND`` lies at index N of
``bitbert.layers.KIND``. With a name for each, the names would take as much room as all scales.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bitbert.errors import UserError
from bitbert.files import publish_folder, read_json, sha256_file
from bitbert.packable import unpackable
from bitbert.released import find_model
from bitbert.tokenizer import Tokenizer, load_tokenizer
from bitbert.tokenizer_reference import save_reference

FORMAT = "bitbert-packed"
FORMAT_VERSION = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
RECIPE_FILE = "finetune.yaml"
SUMS_FILE = "SHA256SUMS"

_LAYERS = "bitbert.layers."
_LAYER_NAME = re.compile(r"bitbert\.layers\.(?P<index>\d+)\.(?P<kind>.+)")
_TYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
CHOICES = {
    "weight_scale": ("tensor", "channel"),
    "attention": ("softmax", "bi", "bi_strict"),
    "residual_estimators": ("shared", "per_head"),
    "hidden_act": ("gelu", "relu"),
    "ffn_input": ("signed", "unsigned"),
    "pooler": ("plain", "residual_norm"),
    "head": ("none", "nsp", "classification", "regression", "pair_classification", "pair_regression"),
}
"""What config.json may say; the native library's codes count in this order."""
_LARGEST = {
    "vocab_size": 2**28,
    "hidden_size": 2**20,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**20,
    "intermediate_size": 2**22,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**20,
}
"""As in native/src/model.c: what a config asks for is counted before the file shows that it is there."""
SIZES = tuple(_LARGEST)
"""What gives a model its shape, by HF's names."""
_LARGEST_RANK = 2**12
_CLASSES, _NO_LABELS = (2, 2**20), (0, 0)
_NUM_LABELS = {
    "none": _NO_LABELS,
    "nsp": (2, 2),
    "classification": _CLASSES,
    "regression": _NO_LABELS,
    "pair_classification": _CLASSES,
    "pair_regression": _NO_LABELS,
}
"""Fewest and most labels of a head."""
PAIR_PARTS = 4
"""What a head for pairs sees of the texts' vectors u and v: u, v, |u - v| and u v, side by side."""


@dataclass(frozen=True)
class PackedConfig:
    """What config.json says: shape, method, head. Sizes have HF's names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    method: str
    weight_scale: str
    attention: str
    residual_rank: int
    residual_estimators: str
    hidden_act: str
    ffn_input: str
    pooler: str
    head: str
    max_length: int
    labels: list[str] = field(default_factory=list)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    model_type: str = "bitbert"
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_estimator_sets(self) -> int:
        """Sets of residual estimators a layer: 1, or one a head."""
        return self.num_attention_heads if self.residual_estimators == "per_head" else 1

    @property
    def num_outputs(self) -> int:
        """Width of the head's output."""
        return 1 if self.head.endswith("regression") else len(self.labels)

    @property
    def compares_texts(self) -> bool:
        """Whether the head answers pairs, each text of which is encoded by itself."""
        return self.head.startswith("pair_")


@dataclass(frozen=True)
class PackedModel:
    """A checked checkpoint: config and tensors, by the names and shapes of :func:`tensor_specs`."""

    config: PackedConfig
    tensors: dict[str, np.ndarray]
    tokenizer: Tokenizer


def row_bytes(num_bits: int) -> int:
    """Bytes of a packed row: whole 64-bit words."""
    return -(-num_bits // 64) * 8


def pack_bits(negative: np.ndarray) -> np.ndarray:
    """Pack the last axis: bool (..., n), True = negative -> uint8 (..., row_bytes(n))."""
    packed = np.packbits(negative, axis=-1, bitorder="little")
    missing = row_bytes(negative.shape[-1]) - packed.shape[-1]
    padded = np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(padded)  # of transposed bits numpy keeps the order


def unpack_bits(packed: np.ndarray, num_bits: int) -> np.ndarray:
    """Inverse of :func:`pack_bits`: uint8 (..., row_bytes(n)) -> bool (..., n)."""
    return np.unpackbits(packed, axis=-1, count=num_bits, bitorder="little").astype(bool)


def binary_matrices(config: PackedConfig) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every binary matrix by its prefix; the word table is one of them."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {"bitbert.embeddings.word_embeddings": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        layer = f"bitbert.layers.{index}"
        for name in ("attention.query", "attention.key", "attention.value", "attention_output"):
            shapes[f"{layer}.{name}"] = (hidden, hidden)
        shapes[f"{layer}.intermediate"] = (inner, hidden)
        shapes[f"{layer}.output"] = (hidden, inner)
    return shapes | {"bitbert.pooler.dense": (hidden, hidden)}


def tensor_specs(config: PackedConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every tensor that the checkpoint holds, no more and no less."""
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    hidden = config.hidden_size

    def add(name: str, *shape: int) -> None:
        specs[name] = ("float32", shape)

    def add_norm(name: str) -> None:
        add(f"{name}.weight", hidden)
        add(f"{name}.bias", hidden)

    for name, (rows, columns) in binary_matrices(config).items():
        specs[f"{name}.weight_bits"] = ("uint8", (rows, row_bytes(columns)))
        is_table = name.endswith("word_embeddings")
        add(f"{name}.weight_scale", rows if is_table or config.weight_scale == "channel" else 1)
        if not is_table:
            add(f"{name}.bias", rows)
            add(f"{name}.shift", columns)
            add(f"{name}.input_binarizer.alpha", 1)
    add("bitbert.embeddings.position_embeddings.weight", config.max_position_embeddings, hidden)
    add("bitbert.embeddings.token_type_embeddings.weight", config.type_vocab_size, hidden)
    add_norm("bitbert.embeddings.LayerNorm")
    for index in range(config.num_hidden_layers):
        layer = f"bitbert.layers.{index}"
        for name in ("query", "key", "value", "probability"):
            add(f"{layer}.attention.{name}_binarizer.alpha", 1)
        if config.residual_rank:
            for name in ("query_residual", "key_residual", "query_binary", "key_binary", "value_residual"):
                rows = config.num_estimator_sets * (1 if name == "value_residual" else config.residual_rank)
                add(f"{layer}.attention.estimator.{name}.weight", rows, hidden)
                add(f"{layer}.attention.estimator.{name}.bias", rows)
        add_norm(f"{layer}.attention_norm")
        add_norm(f"{layer}.output_norm")
    if config.pooler == "residual_norm":
        add_norm("bitbert.pooler.LayerNorm")
    if config.head != "none":
        head = "nsp_head" if config.head == "nsp" else "classifier"
        add(f"{head}.weight", config.num_outputs, hidden * (PAIR_PARTS if config.compares_texts else 1))
        add(f"{head}.bias", config.num_outputs)
    return specs


def save_packed(
    folder: Path,
    model: PackedModel,
    card: str,
    *,
    replace: bool = False,
    tokenizer_sources: list[str] | None = None,
    recipe: str | None = None,
) -> None:
    """Write a checkpoint; the folder appears whole or not at all.

    Args:
        tokenizer_sources: where the tokenizer is to be found instead of in the checkpoint, which then carries its hash.
        recipe: YAML, how bitbert-finetune is to train it where nobody says otherwise.

    Raises:
        UserError: the tensors do not fit the config, or the folder exists and ``replace`` is false.
    """
    _check_tensors(model.config, model.tensors, str(folder))
    with publish_folder(folder, replace=replace) as temporary:
        text = json.dumps(asdict(model.config), indent=2, sort_keys=True, ensure_ascii=False)
        (temporary / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        # "pt" is the marker that transformers asks of a safetensors file.
        save_file(stack_layers(model.tensors), temporary / WEIGHTS_FILE, {"format": "pt"})
        if tokenizer_sources is None:
            model.tokenizer.save(temporary)
        else:
            save_reference(temporary, model.tokenizer, tokenizer_sources, load_tokenizer)
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        if recipe is not None:
            (temporary / RECIPE_FILE).write_text(recipe, encoding="utf-8")
        sums = [f"{sha256_file(file)}  {file.name}\n" for file in sorted(temporary.iterdir())]
        (temporary / SUMS_FILE).write_text("".join(sums), encoding="utf-8")


def load_packed(path: str | Path) -> PackedModel:
    """Read a checkpoint, by folder or released name; hashes are checked before any byte is interpreted.

    Raises:
        UserError: the name is unknown, the folder is not a packed checkpoint of a known version, a file was altered,
            or the tensors are not exactly those that the config asks for.
    """
    folder = find_model(path)
    if not is_packed(folder):
        raise UserError(f"{str(folder)!r} is not a packed checkpoint ({_why_not_packed(folder)}")
    _check_sums(folder)
    config = parse_config(read_json(folder / CONFIG_FILE, "packed config"), str(folder / CONFIG_FILE))
    tokenizer = load_tokenizer(str(folder))
    if tokenizer.fingerprint != config.tokenizer.get("fingerprint"):
        raise UserError(
            f"tokenizer in {str(folder)!r} has fingerprint {tokenizer.fingerprint[:12]}, the model was trained with "
            f"{str(config.tokenizer.get('fingerprint'))[:12]}; restore the checkpoint's own tokenizer"
        )
    tensors = _unstack_layers(_map_tensors(folder / WEIGHTS_FILE), config, str(folder / WEIGHTS_FILE))
    _check_tensors(config, tensors, str(folder / WEIGHTS_FILE))
    return PackedModel(config, tensors, tokenizer)


def recipe_of(path: str | Path) -> Path | None:
    """The finetuning recipe that a checkpoint brings along; None: it brings none, or ``path`` is no checkpoint.

    Raises:
        UserError: as :func:`load_packed` does for a name or a file that is not what it was.
    """
    folder = find_model(path)
    if not is_packed(folder) or not (folder / RECIPE_FILE).is_file():
        return None
    _check_sums(folder)
    return folder / RECIPE_FILE


def stack_layers(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as the file holds them: ``bitbert.layers.KIND`` (layers, ...) for each ``bitbert.layers.N.KIND``."""
    stored, kinds = {}, defaultdict[str, dict[int, np.ndarray]](dict)
    for name, tensor in tensors.items():
        if match := _LAYER_NAME.fullmatch(name):
            kinds[match["kind"]][int(match["index"])] = tensor
        else:
            stored[name] = np.ascontiguousarray(tensor)
    for kind, layers in kinds.items():
        stored[_LAYERS + kind] = np.stack([layers[index] for index in sorted(layers)])
    return stored


def _unstack_layers(stored: Mapping[str, np.ndarray], config: PackedConfig, origin: str) -> dict[str, np.ndarray]:
    """The tensors by their names in the model; those of layers are views."""
    tensors = {}
    for name, tensor in stored.items():
        if not name.startswith(_LAYERS):
            tensors[name] = tensor
            continue
        if tensor.shape[:1] != (config.num_hidden_layers,):
            raise UserError(
                f"{origin}: {name} has shape {tensor.shape}, wanted {config.num_hidden_layers} layers first; "
                "the file does not fit its config"
            )
        for index in range(config.num_hidden_layers):
            tensors[f"{_LAYERS}{index}.{name.removeprefix(_LAYERS)}"] = tensor[index]
    return tensors


def _why_not_packed(folder: Path) -> str:
    """The reason and what to do, for a folder that is no packed checkpoint."""
    latent = read_json(folder / CONFIG_FILE, "model config") if (folder / CONFIG_FILE).is_file() else {}
    if not isinstance(latent, dict) or latent.get("model_type") != "bitbert":
        return f"no {SUMS_FILE} and {WEIGHTS_FILE}); make one with bitbert-export or bitbert-finetune"
    reason = unpackable(latent)
    if reason is None:
        return "it holds latent weights); pack them with bitbert-export, or use the packed/ folder beside it"
    return (
        f"it holds latent weights, and cannot be packed: {reason}); the runtime computes with 1 bit, use torch for it"
    )


def _map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Views into the mapped file: a process that only runs the model never holds a second copy of its weights.

    The mapping is private: writing to a view changes neither the file nor another process's view.
    """
    try:
        with safe_open(path, "np"):
            pass  # checks the header: known types, sizes that fit, no overlap, no holes
        mapped = np.memmap(path, np.uint8, "c")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
    data = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    header = json.loads(mapped[8:data].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES:
            raise UserError(f"{path}: {name} is of type {entry['dtype']}, wanted float32 or uint8")
        begin, end = entry["data_offsets"]
        values = np.frombuffer(mapped.data[data + begin : data + end], _TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def is_packed(folder: Path) -> bool:
    """Whether ``folder`` looks like a packed checkpoint."""
    return (folder / SUMS_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of everything in the checkpoint folder."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def parse_config(data: Any, origin: str) -> PackedConfig:
    """Check the keys, types and values of config.json."""
    if not isinstance(data, dict):
        raise UserError(f"{origin}: holds {type(data).__name__}, wanted an object")
    found = (data.get("format"), data.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{origin}: is {found[0]!r} version {found[1]!r}, wanted {FORMAT!r} version {FORMAT_VERSION}; "
            "export the model again or update bitbert"
        )
    names = {config_field.name for config_field in fields(PackedConfig)}
    if set(data) != names:
        raise UserError(
            f"{origin}: missing keys {sorted(names - set(data))}, unknown keys {sorted(set(data) - names)}; "
            f"the file is not of version {FORMAT_VERSION}"
        )
    limits = {name: (1, largest) for name, largest in _LARGEST.items()}
    limits |= {"max_length": (1, _LARGEST["max_position_embeddings"]), "residual_rank": (0, _LARGEST_RANK)}
    for name, (lowest, largest) in limits.items():
        if type(data[name]) is not int or not lowest <= data[name] <= largest:
            raise UserError(f"{origin}: {name} is {data[name]!r}, wanted an integer from {lowest} to {largest}")
    for name, choices in CHOICES.items():
        if data[name] not in choices:
            raise UserError(f"{origin}: {name} is {data[name]!r}, wanted one of {', '.join(choices)}")
    if data["hidden_size"] % data["num_attention_heads"]:
        raise UserError(
            f"{origin}: hidden_size {data['hidden_size']} is not a multiple of num_attention_heads "
            f"{data['num_attention_heads']}"
        )
    if data["residual_rank"] and data["attention"] != "softmax":
        raise UserError(
            f"{origin}: residual_rank is {data['residual_rank']} with attention {data['attention']!r}, wanted 0; "
            "Bi-Attention has no estimators"
        )
    if data["max_length"] > data["max_position_embeddings"]:
        raise UserError(
            f"{origin}: max_length {data['max_length']} is above max_position_embeddings "
            f"{data['max_position_embeddings']}"
        )
    if type(data["layer_norm_eps"]) not in (int, float) or not 0 <= data["layer_norm_eps"] < 1:
        raise UserError(f"{origin}: layer_norm_eps is {data['layer_norm_eps']!r}, wanted a number in [0, 1)")
    _check_labels(data, origin)
    if data["head"].startswith("pair_") and data["type_vocab_size"] < 2:
        raise UserError(f"{origin}: type_vocab_size is {data['type_vocab_size']}, wanted at least 2 for pairs of texts")
    if not isinstance(data["tokenizer"], dict) or data["tokenizer"].get("vocab_size") != data["vocab_size"]:
        raise UserError(f"{origin}: tokenizer has {data['tokenizer']!r}, wanted vocab_size {data['vocab_size']}")
    return PackedConfig(**data)


def _check_labels(data: dict[str, Any], origin: str) -> None:
    labels, (least, most) = data["labels"], _NUM_LABELS[data["head"]]
    is_list = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not is_list or not least <= len(labels) <= most:
        wanted = {0: "an empty list", 2: "a list of two strings"}.get(most, "a list of at least two strings")
        raise UserError(f"{origin}: labels are {labels!r:.200}, wanted {wanted} for head {data['head']!r}")


def _check_sums(folder: Path) -> None:
    entries = {}
    for line in (folder / SUMS_FILE).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        entries[name] = digest
    for required in (CONFIG_FILE, WEIGHTS_FILE):
        if required not in entries:
            raise UserError(
                f"{str(folder / SUMS_FILE)!r} does not list {required}; the checkpoint is damaged, copy it again"
            )
    files = {file.name for file in folder.iterdir()} - {SUMS_FILE}
    if files != set(entries):
        raise UserError(
            f"{str(folder)!r}: {SUMS_FILE} lists {sorted(entries)}, the folder has {sorted(files)}; "
            "copy the checkpoint again"
        )
    for name, digest in entries.items():
        if not (folder / name).is_file():
            raise UserError(f"{str(folder / name)!r} is no file; copy the checkpoint again")
        found = sha256_file(folder / name)
        if found != digest:
            raise UserError(
                f"{str(folder / name)!r} was altered or cut off: sha256 is {found[:12]}..., "
                f"{SUMS_FILE} says {digest[:12]}...; copy the checkpoint again"
            )


def _check_tensors(config: PackedConfig, tensors: Mapping[str, np.ndarray], origin: str) -> None:
    specs = tensor_specs(config)
    missing, extra = sorted(set(specs) - set(tensors)), sorted(set(tensors) - set(specs))
    if missing or extra:
        raise UserError(
            f"{origin}: missing tensors {missing[:3]}, unexpected tensors {extra[:3]}; the file does not fit its config"
        )
    for name, (dtype, shape) in specs.items():
        tensor = tensors[name]
        if str(tensor.dtype) != dtype or tensor.shape != shape:
            raise UserError(f"{origin}: {name} is {tensor.dtype} {tensor.shape}, wanted {dtype} {shape}")
        if dtype == "float32" and not np.isfinite(tensor).all():
            raise UserError(
                f"{origin}: {name} holds values that are not finite; the model diverged or the file is damaged"
            )
        if name.endswith((".alpha", ".weight_scale")) and not (tensor > 0).all():
            raise UserError(f"{origin}: {name} holds {tensor.min()}, wanted scales above 0")
    for name, (_, columns) in binary_matrices(config).items():
        bits = tensors[f"{name}.weight_bits"]
        tail = bits[:, columns // 8 :].copy()
        if columns % 8:
            tail[:, 0] >>= columns % 8
        if tail.any():
            raise UserError(
                f"{origin}: {name}.weight_bits has bits set beyond column {columns}, wanted zeros; "
                "the file was not written by this format"
            )
