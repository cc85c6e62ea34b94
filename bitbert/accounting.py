"""Parameters, sizes and operations of a BERT shape, in the published conventions and in ours.

The literature counts a binary BERT in ways that differ by 16 %; every number here names its convention.
``python -m bitbert.accounting`` prints the table for BERT-base.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitbert.packed import PackedConfig, tensor_specs

MIB = 2**20
GIGA = 10**9
_ITEM_BYTES = {"uint8": 1, "float32": 4}


@dataclass(frozen=True)
class Shape:
    """A BERT encoder's shape; the defaults are BERT-base uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2


def shape_of(config: Any) -> Shape:
    """The shape of a model config with HF's field names."""
    return Shape(**{name: getattr(config, name) for name in vars(Shape())})


@dataclass(frozen=True)
class Figure:
    """A number with the convention behind it."""

    value: float
    unit: str
    convention: str


def count_parameters(shape: Shape) -> dict[str, int]:
    """Parameters of the full-precision encoder by part; task and pretraining heads are left out."""
    hidden, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    return {
        "word_embeddings": shape.vocab_size * hidden,
        "position_embeddings": shape.max_position_embeddings * hidden,
        "token_type_embeddings": shape.type_vocab_size * hidden,
        "layer_weights": layers * (4 * hidden * hidden + 2 * hidden * inner),
        "layer_biases": layers * (5 * hidden + inner),
        "layer_norms": (1 + 2 * layers) * 2 * hidden,
        "pooler_weight": hidden * hidden,
        "pooler_bias": hidden,
    }


def size_full_precision(shape: Shape) -> Figure:
    """418 "MB" of the tables: every parameter of encoder and pooler in float32."""
    return Figure(4 * sum(count_parameters(shape).values()) / MIB, "MiB", "float32 encoder and pooler, no task head")


def size_bibert_table(shape: Shape, weight_bits: int = 1, embedding_bits: int = 1) -> Figure:
    """13.4 "MB", 31.2x of the BiBERT and BiT tables: the convention that reproduces both figures."""
    count = count_parameters(shape)
    bits = weight_bits * count["layer_weights"] + embedding_bits * count["word_embeddings"]
    floats = count["layer_biases"] + count["layer_norms"] + count["pooler_bias"]
    convention = (
        f"BiBERT's table: {weight_bits} bit for layer weights, {embedding_bits} for the word table, float32 biases and "
        "norms; "
        "nothing for pooler weight, position and type tables, scales"
    )
    return Figure((bits / 8 + 4 * floats) / MIB, "MiB", convention)


def size_bipft_table(shape: Shape) -> Figure:
    """28x of BiPFT: everything a full-precision BERT has, its matrices and word table in 1 bit."""
    count = count_parameters(shape)
    bits = count["layer_weights"] + count["word_embeddings"] + count["pooler_weight"]
    floats = sum(count.values()) - bits
    return Figure(
        (bits / 8 + 4 * floats) / MIB,
        "MiB",
        "BiPFT's table: 1 bit for all matrices and the word table, float32 for the rest of BERT; "
        "nothing for scales, shifts, steps, estimators",
    )


def size_tinybert(shape: Shape, teacher_width: int = 768) -> Figure:
    """257 and 55.6 "MB" of the 6- and 4-layer rows: TinyBERT's float32 models with their map to the teacher's width."""
    fit_dense = shape.hidden_size * teacher_width + teacher_width
    return Figure(
        4 * (sum(count_parameters(shape).values()) + fit_dense) / MIB,
        "MiB",
        f"float32 encoder and pooler, and TinyBERT's fit_dense to {teacher_width} columns",
    )


def size_low_bit(shape: Shape, weight_bits: int, embedding_bits: int) -> Figure:
    """Layer weights and pooler in ``weight_bits``, the word table in ``embedding_bits``, all else in float32."""
    count = count_parameters(shape)
    weights, words = count["layer_weights"] + count["pooler_weight"], count["word_embeddings"]
    floats = sum(count.values()) - weights - words
    return Figure(
        (weights * weight_bits / 8 + words * embedding_bits / 8 + 4 * floats) / MIB,
        "MiB",
        f"{weight_bits}-bit matrices, {embedding_bits}-bit word table, float32 for the rest of BERT",
    )


def size_binarybert(shape: Shape) -> Figure:
    """16.5 "MB" of BinaryBERT: decimal megabytes, layer weights and the two word tables of the split, in 1 bit."""
    count = count_parameters(shape)
    bits = count["layer_weights"] + 2 * count["word_embeddings"]
    return Figure(bits / 8 / 10**6, "MB", "1 bit for layer weights and for both word tables; nothing else; decimal")


def size_deployable(config: PackedConfig) -> Figure:
    """What the runtime needs, byte for byte: all tensors of the packed checkpoint with rows padded to 64 bits."""
    total = 0
    for dtype, dimensions in tensor_specs(config).values():
        elements = 1
        for dimension in dimensions:
            elements *= dimension
        total += elements * _ITEM_BYTES[dtype]
    return Figure(
        total / MIB,
        "MiB",
        f"ours: every tensor of the packed checkpoint ({config.method}), with scales, shifts, steps, "
        "estimators and padding",
    )


def multiply_accumulates(shape: Shape, num_tokens: int) -> dict[str, int]:
    """Multiply-accumulates of one sequence by part: layer weights, attention products, pooler."""
    count = count_parameters(shape)
    return {
        "layer_weights": count["layer_weights"] * num_tokens,
        "attention": shape.num_hidden_layers * 2 * num_tokens**2 * shape.hidden_size,
        "pooler": count["pooler_weight"],
    }


def operations_full_precision(shape: Shape, num_tokens: int) -> Figure:
    """22.348 GFLOPs for BERT-base at 128 tokens; the tables print 22.5, TinyBERT's figure with element-wise work."""
    return Figure(
        2 * sum(multiply_accumulates(shape, num_tokens).values()) / GIGA,
        "G",
        "2 operations a multiply-accumulate, matrix products only",
    )


def operations_binary(shape: Shape, num_tokens: int) -> Figure:
    """0.349 G for BERT-base at 128 tokens: BinaryBERT's convention, an m x n-bit product costs m n / 64."""
    full = operations_full_precision(shape, num_tokens)
    return Figure(full.value / 64, "G", "matrix products of 1 x 1 bit at 1/64 (BinaryBERT's convention)")


def operations_low_bit(shape: Shape, num_tokens: int, weight_bits: int, activation_bits: int) -> Figure:
    """Operations with w-bit weights and a-bit activations, in BinaryBERT's convention.

    A product of an m-bit and an n-bit number costs m n / 64 of a float's: w a / 64 in linear layers, a a / 64 between
    queries, keys, probabilities and values.
    """
    macs = multiply_accumulates(shape, num_tokens)
    linear = (macs["layer_weights"] + macs["pooler"]) * weight_bits * activation_bits
    total = 2 * (linear + macs["attention"] * activation_bits**2) / 64
    return Figure(total / GIGA, "G", f"matrix products of {weight_bits} x {activation_bits} bit at w a / 64")


def operations_binary_with_elementwise(shape: Shape, num_tokens: int, *, norm_cost: int = 5) -> Figure:
    """0.376 G (``norm_cost`` 1) to 0.386 G (5) for BERT-base at 128 tokens; the tables print 0.4."""
    binary, elementwise = operations_binary(shape, num_tokens), operations_elementwise(shape, num_tokens, norm_cost)
    return Figure(binary.value + elementwise.value, "G", f"{binary.convention}, plus {elementwise.convention}")


def operations_elementwise(shape: Shape, num_tokens: int, norm_cost: int = 5) -> Figure:
    """Float work beside the matrix products: biases, residual connections, norms, activations, softmax."""
    hidden, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    scores = layers * shape.num_attention_heads * num_tokens**2
    operations = (
        layers * num_tokens * (5 * hidden + inner)  # biases
        + layers * num_tokens * 2 * hidden  # residual connections
        + (1 + 2 * layers) * num_tokens * hidden * norm_cost  # norms
        + layers * num_tokens * inner  # activation
        + 3 * scores  # scale, mask, softmax
    )
    return Figure(operations / GIGA, "G", f"1 operation an element of float work ({norm_cost} a norm's element)")


def packed_config(shape: Shape, method_fields: Mapping[str, Any], *, method: str) -> PackedConfig:
    """The packed config of an encoder without head, to count its bytes."""
    names = ("weight_scale", "attention", "residual_rank", "residual_estimators", "hidden_act", "ffn_input", "pooler")
    fields = {name: method_fields[name] for name in names}
    return PackedConfig(
        **vars(shape),
        **fields,
        layer_norm_eps=1e-12,
        method=method,
        head="none",
        max_length=shape.max_position_embeddings,
    )


def table(shape: Shape, num_tokens: int, packed: PackedConfig) -> list[tuple[str, Figure]]:
    """All figures of a shape, named."""
    return [
        ("parameters", Figure(sum(count_parameters(shape).values()), "", "encoder and pooler")),
        ("size, full precision", size_full_precision(shape)),
        ("size, BiBERT's table", size_bibert_table(shape)),
        ("size, BiPFT's table", size_bipft_table(shape)),
        ("size, deployable", size_deployable(packed)),
        (f"operations at {num_tokens} tokens, full precision", operations_full_precision(shape, num_tokens)),
        (f"operations at {num_tokens} tokens, 1 bit", operations_binary(shape, num_tokens)),
        (
            f"operations at {num_tokens} tokens, 1 bit, element-wise",
            operations_binary_with_elementwise(shape, num_tokens),
        ),
    ]


def format_table(rows: list[tuple[str, Figure]]) -> str:
    """One line a figure: name, value, unit, convention."""
    lines = []
    for name, figure in rows:
        value = f"{figure.value:,.0f}" if figure.value >= 10**6 else f"{figure.value:.3f}"
        lines.append(f"{name:50} {value:>13} {figure.unit:4} {figure.convention}")
    return "\n".join(lines)


def main() -> None:
    """Print BERT-base at 128 tokens with BiPFT-B's method."""
    fields = {
        "weight_scale": "tensor",
        "attention": "softmax",
        "residual_rank": 1,
        "residual_estimators": "shared",
        "hidden_act": "gelu",
        "ffn_input": "signed",
        "pooler": "residual_norm",
    }
    shape = Shape()
    print(format_table(table(shape, 128, packed_config(shape, fields, method="bipft-b"))))


if __name__ == "__main__":
    main()
