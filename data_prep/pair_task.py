"""A finetuning task that needs no download: do two sentences come from the same article?

Held-out documents give the first sentences of each; they are split once more, so no article is in both
train.csv and eval.csv.
"""

import csv
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitbert.errors import UserError
from bitbert.files import write_atomically, write_text_atomically

from .config import DataConfig, PairTaskConfig
from .splits import HELDOUT, key_range

LABELS = ("different", "same")
_SENTENCES_PER_DOCUMENT = 48
_CHARS_PER_SENTENCE = 1000


class SampleCollector:
    """The held-out documents of one unit that a pair task may use: those with the least keys, a bounded number."""

    def __init__(self, config: DataConfig) -> None:
        task = config.pair_task
        self._limit = task.train_pairs + task.eval_pairs if task else 0
        self._end_key = key_range(HELDOUT, config.heldout_fraction)[1]
        self._samples: list[tuple[int, int, int, list[str]]] = []  # a heap: the greatest key first

    def add(self, key: tuple[int, int], order: int, raw_sentences: Sequence[str]) -> None:
        """Consider a document; only its first sentences are kept, and only if it has two."""
        if key[0] >= self._end_key or not self._limit:
            return
        folded = (" ".join(sentence.split()) for sentence in raw_sentences[: 2 * _SENTENCES_PER_DOCUMENT])
        sentences = [sentence for sentence in folded if 0 < len(sentence) <= _CHARS_PER_SENTENCE][
            :_SENTENCES_PER_DOCUMENT
        ]
        if len(sentences) < 2:
            return
        heapq.heappush(self._samples, (-key[0], -key[1], -order, sentences))
        if len(self._samples) > self._limit:
            heapq.heappop(self._samples)

    def write(self, path: Path) -> None:
        """One JSON line a document, sorted by (key, tail, order)."""
        rows = sorted([-key, -tail, -order, sentences] for key, tail, order, sentences in self._samples)
        write_text_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_pair_task(
    folder: Path, samples: Sequence[Path], near_duplicates: np.ndarray, config: PairTaskConfig, seed: int
) -> dict[str, int]:
    """Write ``train.csv`` and ``eval.csv`` with the columns text_a, text_b, label; labels are balanced.

    Args:
        samples: the files that :class:`SampleCollector` wrote, of all units.
        near_duplicates: orders of documents to leave out, sorted.

    Raises:
        UserError: fewer than four held-out documents have two sentences.
    """
    sentences = _merge(samples, set(near_duplicates.tolist()), config.train_pairs + config.eval_pairs)
    share = config.train_pairs / (config.train_pairs + config.eval_pairs)
    cut = round(len(sentences) * share)
    parts = {"train": (sentences[:cut], config.train_pairs), "eval": (sentences[cut:], config.eval_pairs)}
    counts = {}
    for number, (name, (part, num_pairs)) in enumerate(parts.items()):
        if len(part) < 2:
            raise UserError(
                f"pair_task: {len(sentences)} held-out documents have two sentences or more, wanted at least 4; "
                "raise heldout_fraction"
            )
        rows = _draw_pairs(part, num_pairs, np.random.default_rng([seed, number]))
        write_atomically(folder / f"{name}.csv", partial(_write_csv, rows))
        counts[name] = len(rows)
    return counts


def _merge(samples: Sequence[Path], left_out: set[int], limit: int) -> list[list[str]]:
    """Sentences of the documents with the least keys of all units, each text once."""
    found: list[list[str]] = []
    previous: list[int] | None = None
    for key, tail, order, sentences in heapq.merge(*map(_read_samples, samples), key=lambda row: row[:3]):
        if [key, tail] != previous and order not in left_out:
            found.append(sentences)
        previous = [key, tail]
        if len(found) == limit:
            break
    return found


def _read_samples(path: Path) -> Iterator[list[Any]]:
    with open(path, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


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


def _write_csv(rows: Iterable[tuple[str, str, str]], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text_a", "text_b", "label"))
        writer.writerows(rows)
