"""A finetuning task that needs no download: do two sentences come from the same article?

The documents are the held-out ones, split once more, so no article is in both train.csv and eval.csv.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bitbert.errors import UserError
from bitbert.files import write_atomically

from .config import PairTaskConfig
from .sentences import split_sentences

LABELS = ("different", "same")


def write_pair_task(folder: Path, documents: Sequence[str], config: PairTaskConfig, *, language: str, seed: int) -> dict[str, int]:
    """Write ``train.csv`` and ``eval.csv`` with the columns text_a, text_b, label; labels are balanced.

    Raises:
        UserError: fewer than four held-out documents have two sentences.
    """
    sentences = [found for text in documents if len(found := split_sentences(text, language)) >= 2]
    share = config.train_pairs / (config.train_pairs + config.eval_pairs)
    cut = round(len(sentences) * share)
    parts = {"train": (sentences[:cut], config.train_pairs), "eval": (sentences[cut:], config.eval_pairs)}
    counts = {}
    for number, (name, (part, num_pairs)) in enumerate(parts.items()):
        if len(part) < 2:
            raise UserError(f"pair_task: {len(sentences)} held-out documents have two sentences or more, wanted at least 4; raise heldout_fraction")
        rows = _draw_pairs(part, num_pairs, np.random.default_rng([seed, number]))
        write_atomically(folder / f"{name}.csv", lambda path, rows=rows: _write_csv(path, rows))
        counts[name] = len(rows)
    return counts


def _draw_pairs(sentences: list[list[str]], num_pairs: int, random: np.random.Generator) -> list[tuple[str, str, str]]:
    rows = []
    for index in range(num_pairs):
        document = int(random.integers(len(sentences)))
        first, second = random.choice(len(sentences[document]), size=2, replace=False)
        text_b = sentences[document][second]
        label = LABELS[index % 2]
        if label == "different":
            other = (document + 1 + int(random.integers(len(sentences) - 1))) % len(sentences)
            text_b = sentences[other][int(random.integers(len(sentences[other])))]
        rows.append((sentences[document][first], text_b, label))
    return rows


def _write_csv(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text_a", "text_b", "label"))
        writer.writerows(rows)
