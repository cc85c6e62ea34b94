"""How well one bit a weight can hold a word table, before training: python benchmarks/word_table.py [--heldout SHARDS]

The embedding output, LayerNorm(word + position + type), of held-out rows with the teacher's word table replaced by its
binary versions, against the teacher's own: ||x_b - x|| / ||x|| over text tokens. Position and type tables stay float.
Scales are those with the least squared error for the given signs. Every layer's error in distillation starts from here.
"""

import argparse
from collections.abc import Callable

import torch
from places import MINILM
from torch import Tensor

from bitbert.model.binarize import sign
from bitbert.pretrain.config import DataSection, LossSection
from bitbert.pretrain.run import open_shards
from bitbert.pretrain.teacher import load_teacher
from bitbert.tokenizer import load_tokenizer


def by_table(table: Tensor) -> Tensor:
    """One scale for all."""
    return sign(table) * table.abs().mean()


def by_word(table: Tensor) -> Tensor:
    """A scale a row: what every preset of ours has."""
    return sign(table) * table.abs().mean(dim=1, keepdim=True)


def by_unit(table: Tensor) -> Tensor:
    """A scale a hidden unit."""
    return sign(table) * table.abs().mean(dim=0)


def by_word_and_unit(table: Tensor, rounds: int = 5) -> Tensor:
    """The best product of a scale a row and a scale a column, by alternating least squares."""
    magnitude = table.abs()
    units = magnitude.mean(dim=0)
    for _ in range(rounds):
        words = magnitude @ units / (units @ units)
        units = magnitude.T @ words / (words @ words)
    return sign(table) * words[:, None] * units


def two_bits(table: Tensor) -> Tensor:
    """Two bits a weight, for comparison: a second sign and scale a row for what the first leaves."""
    first = by_word(table)
    return first + by_word(table - first)


SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "one scale": by_table,
    "a scale a word": by_word,
    "a scale a hidden unit": by_unit,
    "a scale a word x a scale a unit": by_word_and_unit,
    "2 bits a weight, scales a word": two_bits,
}
CENTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "0": lambda table: table.new_zeros(()),
    "mean of the table": torch.mean,
    "mean of the word": lambda table: table.mean(dim=1, keepdim=True),
    "mean of the unit, added back": lambda table: table.mean(dim=0),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=MINILM)
    parser.add_argument("--heldout", default="runs/local/shards/heldout")
    parser.add_argument("--rows", type=int, default=256)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.teacher)
    teacher = load_teacher(arguments.teacher, LossSection(nsp_distillation=0.0), tokenizer)
    data = open_shards(arguments.heldout, tokenizer, DataSection(train="", heldout=arguments.heldout), seed=42)
    batch = data.batch(data.sample_rows(0, arguments.rows))
    embeddings = teacher.bert.embeddings
    table = embeddings.word_embeddings.weight.clone()
    text = batch.attention_mask.bool()

    def output() -> Tensor:
        found: Tensor = embeddings(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids)[text]
        return found

    expected = output()
    print(f"mean magnitude of the table: {table.abs().mean():.3f}\n")
    print("| scales | " + " | ".join(f"signs around {name}" for name in CENTERS) + " |")
    print("| --- |" + " ---: |" * len(CENTERS))
    for name, scheme in SCHEMES.items():
        errors = []
        for center_of in CENTERS.values():
            center = center_of(table)
            # A mean that is the same for all words can stay in the type table; one of a word is dropped, as published.
            kept = center if center.dim() == 1 else 0.0
            embeddings.word_embeddings.weight.copy_(scheme(table - center) + kept)
            errors.append((output() - expected).norm() / expected.norm())
        print(f"| {name} | " + " | ".join(f"{error:.3f}" for error in errors) + " |", flush=True)


if __name__ == "__main__":
    main()
