"""What ``bitbert-predict --info`` says of a checkpoint: layers, bits, MiB, operations, capabilities."""

from pathlib import Path

from bitbert.packed import PackedConfig, binary_matrices, checkpoint_bytes, load_packed, tensor_specs
from bitbert.released import find_model
from bitbert.runtime.bitops import available_isas, choose_isa

_MIB = 1 << 20


def describe_checkpoint(path: str | Path) -> list[tuple[str, str]]:
    """:func:`describe_model` of a checkpoint, its bytes on disk, and what would compute it here.

    Raises:
        UserError: see :func:`bitbert.packed.load_packed`.
    """
    return [
        *describe_model(load_packed(path).config),
        ("folder", f"{checkpoint_bytes(find_model(path)) / _MIB:.2f} MiB"),
        ("instruction sets", f"{', '.join(available_isas())}; in use: {choose_isa()}"),
    ]


def describe_model(config: PackedConfig) -> list[tuple[str, str]]:
    """Names and values, in order, of what a person asks of a packed model."""
    specs = tensor_specs(config).values()
    num_bits = sum(rows * columns for rows, columns in binary_matrices(config).values())
    num_floats = sum(_size(shape) for dtype, shape in specs if dtype == "float32")
    num_macs = binary_macs(config, config.max_length)
    outputs = f": {', '.join(config.labels)}" if config.labels else ", 1 value"
    head = "none (encode only)" if config.head == "none" else f"{config.head}{outputs}"
    return [
        ("model", f"{config.method}, head {head}"),
        ("layers", f"{config.num_hidden_layers}"),
        (
            "hidden size",
            f"{config.hidden_size}, {config.num_attention_heads} heads, inner {config.intermediate_size}",
        ),
        ("vocabulary", f"{config.vocab_size} {config.tokenizer.get('kind', '')} tokens"),
        ("longest text", f"{config.max_length} tokens"),
        ("binary weights", f"{num_bits:,} bits, {num_bits / 8 / _MIB:.2f} MiB"),
        ("float values", f"{num_floats:,}, {num_floats * 4 / _MIB:.2f} MiB"),
        (
            "operations",
            f"{num_macs / 1e9:.2f} G binary multiply-accumulates a text of {config.max_length} tokens",
        ),
        ("weight scale", f"one {'an output channel' if config.weight_scale == 'channel' else 'a matrix'}"),
        ("feed-forward", f"{config.hidden_act}, {config.ffn_input} second input"),
        ("attention", config.attention),
        ("residual estimators", _estimators(config)),
    ]


def binary_macs(config: PackedConfig, num_tokens: int) -> int:
    """Multiply-accumulates of ±1 and {0, 1} values for one text: linear layers, attention, pooler."""
    matrices = binary_matrices(config)
    table, pooler = "bitbert.embeddings.word_embeddings", "bitbert.pooler.dense"
    linear = sum(rows * columns for name, (rows, columns) in matrices.items() if name not in (table, pooler))
    attention = 2 * num_tokens * config.hidden_size * config.num_hidden_layers
    return num_tokens * (linear + attention) + config.hidden_size**2


def _estimators(config: PackedConfig) -> str:
    sets = "one set a head" if config.residual_estimators == "per_head" else "shared by the heads"
    return f"rank {config.residual_rank}, {sets}" if config.residual_rank else "none"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
