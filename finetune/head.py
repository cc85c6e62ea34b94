"""What a kind of task is to the training loop: its model class, how rows become features, and how it is scored."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from bitbert.model import BitBertPreTrainedModel
from bitbert.tokenizer import Tokenizer


class Examples(Protocol):
    """A data set in file order: a dataclass of columns."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Self:
        """The examples at ``indices``, in that order."""
        ...


ExamplesT = TypeVar("ExamplesT", bound=Examples)


@dataclass(frozen=True, slots=True)
class Feature:
    """One row of a batch: token ids with special tokens, the target, and the example it was cut from.

    An example can give several features (a long context is read in windows); ``target`` is None without labels.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    target: Any
    example: int


class Head(ABC, Generic[ExamplesT]):
    """A kind of task.

    Attributes:
        model_class: transformers class with this head.
        parameters: names of the head's parameters, which no pretrained encoder has.
        labels: class names by number; empty where the answer is no class.
        metrics: names of the scores; the first one selects the weights.
        is_packable: whether the packed format knows this head.
    """

    model_class: ClassVar[type[BitBertPreTrainedModel]]
    parameters: ClassVar[tuple[str, ...]] = ("classifier.weight", "classifier.bias")
    is_packable: ClassVar[bool] = False
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...]

    def config_fields(self) -> dict[str, Any]:
        """Fields of the model's config that the task decides."""
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: number for number, name in enumerate(self.labels)},
        }

    @abstractmethod
    def encode(self, examples: ExamplesT, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        """Features of at most ``max_length`` tokens, in the examples' order."""

    @abstractmethod
    def targets(self, features: Sequence[Feature], length: int) -> dict[str, np.ndarray]:
        """Label arguments of the model for a batch padded to ``length``."""

    @abstractmethod
    def outputs(self, output: Any) -> np.ndarray:
        """The model's logits for a batch as one array, first axis = feature."""

    @abstractmethod
    def predict(self, examples: ExamplesT, features: Sequence[Feature], outputs: Sequence[np.ndarray]) -> Any:
        """Answers by example, from ``outputs`` of each feature."""

    @abstractmethod
    def score(self, predictions: Any, examples: ExamplesT) -> dict[str, float]:
        """Each of ``metrics`` for answers as :meth:`predict` gives them."""

    @abstractmethod
    def baseline(self, train: ExamplesT, examples: ExamplesT) -> dict[str, float]:
        """Scores of the constant answer that suits the training set best; empty where there is none."""
