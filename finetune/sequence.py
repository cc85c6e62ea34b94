"""Classes and scores of a text or of a pair of texts: GLUE, and one's own tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bitbert.config import Pairs
from bitbert.model import BitBertForSequenceClassification
from bitbert.tokenizer import Tokenizer

from .head import Feature, Head
from .metrics import METRICS


@dataclass(frozen=True)
class TextExamples:
    """Texts, a second text each or None, and labels: class numbers (int64), scores (float32), or None in a test set."""

    texts: list[str]
    second_texts: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> "TextExamples":
        """The examples at ``indices``."""
        return TextExamples(
            [self.texts[index] for index in indices],
            None if self.second_texts is None else [self.second_texts[index] for index in indices],
            None if self.labels is None else self.labels[indices],
        )


class SequenceHead(Head[TextExamples]):
    """Classification into ``labels``, or regression without them."""

    model_class = BitBertForSequenceClassification
    is_packable: ClassVar[bool] = True

    def __init__(self, labels: tuple[str, ...], metrics: tuple[str, ...], pairs: Pairs = "cross_encoder") -> None:
        self.labels, self.metrics, self.pairs = labels, metrics, pairs

    @property
    def is_regression(self) -> bool:
        return not self.labels

    def config_fields(self) -> dict[str, Any]:
        fields = {"num_labels": 1} if self.is_regression else super().config_fields()
        return fields | {"pairs": self.pairs}

    def encode(self, examples: TextExamples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        labels: Any = [None] * len(examples) if examples.labels is None else examples.labels
        pairs = tokenizer.encode_pairs(examples.texts, examples.second_texts, max_length)
        return [
            Feature(ids, types, label, index)
            for index, ((ids, types), label) in enumerate(zip(pairs, labels, strict=True))
        ]

    def targets(self, features: Sequence[Feature], length: int) -> dict[str, np.ndarray]:
        dtype = np.float32 if self.is_regression else np.int64
        return {"labels": np.array([feature.target for feature in features], dtype=dtype)}

    def outputs(self, output: Any) -> np.ndarray:
        logits: np.ndarray = output.logits.float().cpu().numpy()
        return logits

    def predict(self, examples: TextExamples, features: Sequence[Feature], outputs: Sequence[np.ndarray]) -> np.ndarray:
        logits = np.stack(outputs)
        return logits[:, 0] if self.is_regression else logits.argmax(axis=-1)

    def score(self, predictions: np.ndarray, examples: TextExamples) -> dict[str, float]:
        assert examples.labels is not None  # test sets are answered, not scored
        return {name: METRICS[name](predictions, examples.labels) for name in self.metrics}

    def baseline(self, train: TextExamples, examples: TextExamples) -> dict[str, float]:
        """The most frequent class of the training set, or its mean score."""
        assert train.labels is not None
        assert examples.labels is not None
        constant = train.labels.mean() if self.is_regression else np.bincount(train.labels).argmax()
        return self.score(np.full_like(examples.labels, constant), examples)
