"""What a finetuning reads, whichever file it came from; and the checks that all files share."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitbert.config import Pairs
from bitbert.errors import UserError

from .head import Examples, Head
from .sequence import SequenceHead, TextExamples
from .tasks import GlueTask, Part


@dataclass(frozen=True)
class TaskData:
    """One task, read and checked.

    Attributes:
        name: of the task's folder. title: what tables call it.
        evaluation: labelled sets by name; the first one selects the weights.
        test: sets without labels, by the name of the file that their answers go to.
        epochs: where the recipe says nothing.
        glue: the GLUE task it is, or None for one's own.
        caveats: why its scores are not GLUE's, a sentence each; empty when they are, and for one's own data.
        test_caveats: why its answers to test sets are not.
    """

    name: str
    title: str
    head: Head[Any]
    train: Examples
    evaluation: Mapping[str, Examples]
    epochs: int
    test: Mapping[str, Examples] = dataclasses.field(default_factory=dict)
    glue: GlueTask | None = None
    caveats: tuple[str, ...] = ()
    test_caveats: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what is trained on and scored; what its class numbers mean is :attr:`classes`."""
        return hash_examples(self.train, *self.evaluation.values())

    @property
    def classes(self) -> dict[str, Any]:
        """The kind of head and the names of its classes, for the records of a training."""
        return {"head": type(self.head).__name__, "labels": list(self.head.labels)}

    def answered_as(self, pairs: Pairs) -> "TaskData":
        """This task with its pairs of texts answered in this way; tasks without pairs stay as they are."""
        if not isinstance(self.train, TextExamples) or self.train.second_texts is None:
            return self
        return dataclasses.replace(self, head=SequenceHead(self.head.labels, self.head.metrics, pairs))

    def caveats_of(self, max_train_rows: int | None) -> list[str]:
        """Why scores of a training on the first ``max_train_rows`` rows (None = all) are not GLUE's."""
        caveats = list(self.caveats)
        if self.glue is not None and max_train_rows is not None and max_train_rows < len(self.train):
            caveats.append(f"{self.title} was trained on the first {max_train_rows:,} rows only")
        return caveats


def hash_examples(*sets: Examples) -> str:
    """Hex SHA-256 of data sets, in their order."""
    digest = hashlib.sha256()
    for examples in sets:
        for field in dataclasses.fields(examples):
            value = getattr(examples, field.name)
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


Row = tuple[str, ...]
"""The texts of an example and, last, its label as it is written."""


def text_examples(rows: Sequence[Row], labels: tuple[str, ...], path: Path | str, *, labelled: bool) -> TextExamples:
    """Number the labels of rows of one or two texts; without ``labels`` they are scores.

    Raises:
        UserError: there are no rows, a text is empty on both sides, or a label is wrong.
    """
    if not rows:
        raise UserError(f"task file {str(path)!r} holds no examples; check the file")
    texts = [row[:-1] if labelled else row for row in rows]
    for number, found in enumerate(texts, start=1):
        if not any(text.strip() for text in found):
            raise UserError(f"{str(path)!r}, example {number}: the text is empty; remove the row")
    array = _numbers([row[-1] for row in rows], labels, path) if labelled else None
    seconds = [found[1] for found in texts] if len(texts[0]) == 2 else None
    return TextExamples([found[0] for found in texts], seconds, array)


def _numbers(found: Sequence[str], labels: tuple[str, ...], path: Path | str) -> np.ndarray:
    classes = {label: number for number, label in enumerate(labels)}
    values: list[float] = []
    for number, label in enumerate(found, start=1):
        if labels and label not in classes:
            raise UserError(f"{str(path)!r}, example {number}: label {label!r}, wanted one of {', '.join(labels)}")
        try:
            values.append(classes[label] if labels else float(label))
        except ValueError as error:
            raise UserError(f"{str(path)!r}, example {number}: score {label!r}, wanted a number") from error
        if not np.isfinite(values[-1]):
            raise UserError(f"{str(path)!r}, example {number}: score {label!r}, wanted a finite number")
    return np.array(values, dtype=np.int64 if labels else np.float32)


def size_caveat(task: GlueTask, part: Part, num_rows: int) -> list[str]:
    """Why a part with this many rows cannot be GLUE's: files cut from others are common, and their scores differ."""
    low, high = part.rows
    if low <= num_rows <= high:
        return []
    return [f"{task.title} {part.name} has {num_rows:,} rows, the official file has {high:,}"]


def read_text(path: Path) -> str:
    """A task file's text, without a byte-order mark.

    Raises:
        UserError: it is not there, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"task file {str(path)!r} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"task file {str(path)!r} is not UTF-8 at byte {error.start}; convert it to UTF-8") from error
