"""What a kind of task is to the training loop: its model class, how rows become features, and how it is scored."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from bitbert.model import BitBertPreTrainedModel
from bitbert.tokenizer import Tokenizer


class Examples(Protocol):
    """A data set in file order: a dataclass of columns."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Self:
        """The examples at ``indices``, in that order."""
        ...


POOL_BATCHES = 50
"""How many batches' rows are sorted together by length."""

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


def batches(
    features: Sequence[Feature], order: np.ndarray, batch_size: int, pad_id: int, head: "Head[Any] | None"
) -> Iterator[dict[str, Tensor]]:
    """Batches in the given order, each padded to its longest row: keyword arguments of the model.

    Without ``head`` they carry no labels.
    """
    for start in range(0, len(order), batch_size):
        chosen = [features[index] for index in order[start : start + batch_size]]
        length = max(len(feature.input_ids) for feature in chosen)
        ids = np.full((len(chosen), length), pad_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, feature in enumerate(chosen):
            size = len(feature.input_ids)
            ids[row, :size], types[row, :size], mask[row, :size] = feature.input_ids, feature.token_type_ids, 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        if head is not None:
            arrays |= head.targets(chosen, length)
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}


def epoch_order(
    features: Sequence[Feature], batch_size: int, random: np.random.Generator, *, group_by_length: bool
) -> np.ndarray:
    """An epoch's order of the rows: a permutation, or one in which neighbours are of like length.

    For the latter, every :data:`POOL_BATCHES` batches' worth of permuted rows is sorted by length and cut into batches,
    and the batches are shuffled: padding almost vanishes, and which rows meet stays random. A batch that is not full
    comes last.
    """
    order = random.permutation(len(features))
    if not group_by_length:
        return order
    lengths = np.array([len(feature.input_ids) for feature in features])
    pool = POOL_BATCHES * batch_size
    pools = [order[start : start + pool] for start in range(0, len(order), pool)]
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    num_full = len(order) // batch_size
    full = order[: num_full * batch_size].reshape(num_full, batch_size)
    return np.concatenate([random.permutation(full).reshape(-1), order[num_full * batch_size :]])


@torch.no_grad()
def run_model(
    model: BitBertPreTrainedModel, head: Head[Any], features: Sequence[Feature], batch_size: int, pad_id: int
) -> list[np.ndarray]:
    """The head's outputs for each feature, in their order; dropout off."""
    model.eval()
    # Neighbours of like length share a batch: less padding, the same answers.
    order = np.argsort([len(feature.input_ids) for feature in features], kind="stable")
    found: list[np.ndarray] = [np.empty(0)] * len(features)
    place = 0
    for batch in batches(features, order, batch_size, pad_id, None):
        rows = head.outputs(model(**{name: tensor.to(model.device) for name, tensor in batch.items()}))
        for row in rows:
            found[order[place]] = row
            place += 1
    return found
