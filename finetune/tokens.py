"""A class for every word of a text: named entities, parts of speech."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitbert.model import BitBertForTokenClassification
from bitbert.model.modeling import IGNORED_LABEL
from bitbert.tokenizer import Tokenizer

from .head import Feature, Head

OUTSIDE = "O"


@dataclass(frozen=True)
class WordExamples:
    """Words of each text and the class number of each word."""

    words: list[list[str]]
    tags: list[list[int]]

    def __len__(self) -> int:
        return len(self.words)

    def take(self, indices: np.ndarray) -> "WordExamples":
        """The examples at ``indices``."""
        return WordExamples([self.words[index] for index in indices], [self.tags[index] for index in indices])


class TokenHead(Head[WordExamples]):
    """Classification of words; the first token of a word carries its class, the others carry none.

    Words that ``max_length`` cuts off are answered with "O" (without such a class, with the first one) and so count.
    """

    model_class = BitBertForTokenClassification

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        marks_entities = OUTSIDE in labels and all(name == OUTSIDE or name[:2] in ("B-", "I-") for name in labels)
        self.metrics = ("entity_f1", "accuracy") if marks_entities else ("accuracy",)
        self._fallback = labels.index(OUTSIDE) if OUTSIDE in labels else 0

    def encode(self, examples: WordExamples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        features = []
        for index, (words, tags) in enumerate(zip(examples.words, examples.tags, strict=True)):
            ids, target = [tokenizer.cls_id], [IGNORED_LABEL]
            for word_ids, tag in zip(tokenizer.encode_batch(words), tags, strict=True):
                pieces = word_ids or [tokenizer.unk_id]  # a word of control characters alone still has a class
                ids += pieces
                target += [tag, *[IGNORED_LABEL] * (len(pieces) - 1)]
            ids, target = [*ids[: max_length - 1], tokenizer.sep_id], [*target[: max_length - 1], IGNORED_LABEL]
            features.append(Feature(ids, [0] * len(ids), target, index))
        return features

    def targets(self, features: Sequence[Feature], length: int) -> dict[str, np.ndarray]:
        labels = np.full((len(features), length), IGNORED_LABEL, dtype=np.int64)
        for row, feature in enumerate(features):
            labels[row, : len(feature.target)] = feature.target
        return {"labels": labels}

    def outputs(self, output: Any) -> np.ndarray:
        logits: np.ndarray = output.logits.float().cpu().numpy()
        return logits

    def predict(
        self, examples: WordExamples, features: Sequence[Feature], outputs: Sequence[np.ndarray]
    ) -> list[list[int]]:
        predictions = []
        for feature, logits in zip(features, outputs, strict=True):
            firsts = np.flatnonzero(np.array(feature.target) != IGNORED_LABEL)
            found = logits[firsts].argmax(axis=-1).tolist()
            missing = len(examples.words[feature.example]) - len(found)
            predictions.append([*found, *[self._fallback] * missing])
        return predictions

    def score(self, predictions: list[list[int]], examples: WordExamples) -> dict[str, float]:
        scores = {"accuracy": _accuracy(predictions, examples.tags)}
        if "entity_f1" in self.metrics:
            scores["entity_f1"] = entity_f1(self._names(predictions), self._names(examples.tags))
        return {name: scores[name] for name in self.metrics}

    def baseline(self, train: WordExamples, examples: WordExamples) -> dict[str, float]:
        """The most frequent class of the training set for every word."""
        counts = np.bincount([tag for tags in train.tags for tag in tags])
        return self.score([[int(counts.argmax())] * len(tags) for tags in examples.tags], examples)

    def _names(self, tags: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.labels[tag] for tag in row] for row in tags]


def entity_f1(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> float:
    """F1 over entities: one is right when its first word, its last word and its class are (CoNLL-2003's measure).

    An entity begins at B-x, and at I-x after another class, as CoNLL's own script reads both tag schemes.
    """
    found = {(row, *entity) for row, tags in enumerate(predictions) for entity in _entities(tags)}
    wanted = {(row, *entity) for row, tags in enumerate(labels) for entity in _entities(tags)}
    right = len(found & wanted)
    return 2 * right / (len(found) + len(wanted)) if right else 0.0


def _entities(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(first word, one past the last, class) of each entity."""
    start, kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        inside = tag != OUTSIDE and tag.startswith("I-") and tag[2:] == kind
        if kind and not inside:
            yield start, place, kind
        if not inside:
            start, kind = place, "" if tag == OUTSIDE else tag[2:]


def _accuracy(predictions: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> float:
    pairs = [
        pair for found, wanted in zip(predictions, labels, strict=True) for pair in zip(found, wanted, strict=True)
    ]
    return sum(found == wanted for found, wanted in pairs) / len(pairs)
