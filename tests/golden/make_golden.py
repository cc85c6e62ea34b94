"""Makes the golden files. Run it only for a new format version: what is here must load for ever.

python -m tests.golden.make_golden
"""

import json
from pathlib import Path

import numpy as np

from bitbert.packed import PackedConfig, PackedModel, save_packed, tensor_specs
from bitbert.runtime import Runtime
from bitbert.tokenizer import load_tokenizer
from tests.conftest import write_tiny_tokenizer

GOLDEN = Path(__file__).parent
PACKED = GOLDEN / "packed-v2"
PAIRS = GOLDEN / "packed-v2-pairs"
HEADS = {PACKED: "classification", PAIRS: "pair_classification"}
TEXTS = ("The old river crosses a quiet village.", "the doctor reads", "A queen keeps the bright harbor.")
QUESTIONS = {PACKED: TEXTS, PAIRS: tuple(zip(TEXTS, TEXTS[::-1], strict=True))}
CARD = "# Golden packed checkpoint, version 2\n\nNumbers from a generator; it has learnt nothing.\n"


def golden_model(tokenizer_folder: Path, head: str = "classification") -> PackedModel:
    """A model whose every tensor comes from numpy's PCG64; hidden size and heads are not multiples of 64."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    config = PackedConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=72,
        max_position_embeddings=16,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        method="bipft-b",
        weight_scale="tensor",
        attention="softmax",
        residual_rank=1,
        residual_estimators="shared",
        hidden_act="gelu",
        ffn_input="signed",
        pooler="residual_norm",
        head=head,
        max_length=16,
        labels=["negative", "positive", "neutral"],
        tokenizer=tokenizer.describe(),
    )
    random = np.random.default_rng(20260101)
    tensors = {}
    for name, (dtype, shape) in tensor_specs(config).items():
        if dtype == "uint8":
            from bitbert.packed import binary_matrices, pack_bits

            columns = binary_matrices(config)[name.removesuffix(".weight_bits")][1]
            tensors[name] = pack_bits(random.random((shape[0], columns)) < 0.5)
        elif name.endswith((".alpha", "_scale")):
            tensors[name] = random.uniform(0.1, 0.9, shape).astype(np.float32)
        else:
            tensors[name] = random.normal(0, 0.3, shape).astype(np.float32) + np.float32(name.endswith("orm.weight"))
    return PackedModel(config, tensors, tokenizer)


def main() -> None:
    folder = write_tiny_tokenizer(GOLDEN / "tokenizer.tmp")
    try:
        for path, head in HEADS.items():
            save_packed(path, golden_model(folder, head), CARD, replace=True)
    finally:
        (folder / "tokenizer.json").unlink()
        folder.rmdir()
    for path, texts in QUESTIONS.items():
        answers = [
            {"text": text, "logits": prediction.logits}
            for text, prediction in zip(texts, Runtime.load(path).classify(texts), strict=True)
        ]
        Path(f"{path}-answers.json").write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
