"""Task files -> examples -> token ids -> padded batches."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitbert.errors import UserError
from bitbert.tokenizer import Tokenizer

from .tasks import Task

_TEXT_COLUMNS = (("text_a", "text_b"), ("text",))
_LABEL_COLUMN = "label"


@dataclass(frozen=True)
class Examples:
    """A data set in file order: texts, a second text each or None, and labels (class numbers, or scores)."""

    texts: list[str]
    second_texts: list[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TaskData:
    """Everything a finetuning reads: training examples, evaluation sets by name, label names, metrics."""

    name: str
    train: Examples
    evaluation: dict[str, Examples]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    epochs: int

    @property
    def is_regression(self) -> bool:
        return not self.labels


def read_glue_task(task: Task, glue_folder: Path) -> TaskData:
    """Read one task from a folder of official GLUE files.

    Raises:
        UserError: a file is missing or empty, a column is unknown, or a label is wrong.
    """
    folder = glue_folder / task.folder
    if not folder.is_dir():
        raise UserError(
            f"GLUE folder {str(glue_folder)!r} has no {task.folder}/; give the folder that holds "
            f"{task.folder}/train.tsv with --glue-dir"
        )
    train = _read_glue_file(task, folder / "train.tsv")
    evaluation = {name: _read_glue_file(task, folder / file) for name, file in task.dev_files}
    return TaskData(task.name, train, evaluation, task.labels, task.metrics, task.epochs)


def read_csv_task(train: Path, evaluation: Path, *, regression: bool) -> TaskData:
    """Read one's own task: CSV files with a header, columns ``text`` (or ``text_a``, ``text_b``) and ``label``.

    Labels are strings, numbered in sorted order; numbers with ``regression``.

    Raises:
        UserError: a file or column is missing, or evaluation has a label that training lacks.
    """
    train_rows, eval_rows = _read_csv(train), _read_csv(evaluation)
    labels = () if regression else tuple(sorted({label for *_, label in train_rows}))
    if not regression and len(labels) < 2:
        raise UserError(
            f"{str(train)!r} has one label only, {labels[0]!r}; wanted at least two classes, "
            "or pass --regression for scores"
        )
    metrics = ("pearson", "spearman") if regression else ("accuracy",)
    sets = [_examples(rows, labels, path) for rows, path in ((train_rows, train), (eval_rows, evaluation))]
    return TaskData(
        train.stem if train.stem != "train" else train.parent.name,
        sets[0],
        {"eval": sets[1]},
        labels,
        metrics,
        epochs=3,
    )


def encode(examples: Examples, tokenizer: Tokenizer, max_length: int) -> list[tuple[list[int], list[int]]]:
    """(input_ids, token_type_ids) of each example, cut to ``max_length``."""
    seconds: Sequence[str | None] = examples.second_texts or [None] * len(examples)
    return [
        tokenizer.encode_pair(first, second, max_length) for first, second in zip(examples.texts, seconds, strict=True)
    ]


def batches(
    encoded: Sequence[tuple[list[int], list[int]]],
    labels: np.ndarray,
    order: np.ndarray,
    batch_size: int,
    pad_id: int,
) -> Iterator[dict[str, Tensor]]:
    """Batches in the given order, each padded to its longest sequence: keyword arguments of the model."""
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = max(len(encoded[index][0]) for index in chosen)
        ids = np.full((len(chosen), length), pad_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for place, index in enumerate(chosen):
            input_ids, token_type_ids = encoded[index]
            ids[place, : len(input_ids)], types[place, : len(input_ids)] = input_ids, token_type_ids
            mask[place, : len(input_ids)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels[chosen]}
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}


def _read_glue_file(task: Task, path: Path) -> Examples:
    """Tab-separated without quoting; a byte-order mark at the start is dropped."""
    lines = _read_text(path).split("\n")
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    if task.has_header:
        header, rows = (rows[0] if rows else []), rows[1:]
        missing = [name for name in (*task.text_columns, task.label_column) if name not in header]
        if missing:
            raise UserError(
                f"{str(path)!r} has no column {missing[0]!r}; columns: {header}; "
                f"wanted the official {task.folder} format"
            )
        columns = [header.index(str(name)) for name in (*task.text_columns, task.label_column)]
    else:
        columns = [int(number) for number in (*task.text_columns, task.label_column)]
    found = []
    for number, row in enumerate(rows, start=2 if task.has_header else 1):
        if len(row) <= max(columns):
            if task.skip_short_rows:
                continue
            raise UserError(
                f"{str(path)!r}, row {number}: {len(row)} columns, wanted {max(columns) + 1} or more; "
                "the file is damaged"
            )
        found.append(tuple(row[column] for column in columns))
    return _examples(found, task.labels, path)


def _read_csv(path: Path) -> list[tuple[str, ...]]:
    rows = list(csv.DictReader(_read_text(path).splitlines()))
    columns = list(rows[0]) if rows else []
    text_columns = next((names for names in _TEXT_COLUMNS if set(names) <= set(columns)), None)
    if rows and (text_columns is None or _LABEL_COLUMN not in columns):
        raise UserError(f"{str(path)!r} has columns {columns}, wanted text and label, or text_a, text_b and label")
    return [tuple(row[name] or "" for name in (*(text_columns or ()), _LABEL_COLUMN)) for row in rows]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"task file {str(path)!r} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"task file {str(path)!r} is not UTF-8 at byte {error.start}; convert it to UTF-8") from error


def _examples(rows: Sequence[tuple[str, ...]], labels: tuple[str, ...], path: Path) -> Examples:
    if not rows:
        raise UserError(f"task file {str(path)!r} holds no examples; check the file")
    numbers = {label: number for number, label in enumerate(labels)}
    values: list[float] = []
    for number, (*_, label) in enumerate(rows, start=1):
        if labels and label not in numbers:
            raise UserError(f"{str(path)!r}, example {number}: label {label!r}, wanted one of {', '.join(labels)}")
        try:
            values.append(numbers[label] if labels else float(label))
        except ValueError as error:
            raise UserError(f"{str(path)!r}, example {number}: score {label!r}, wanted a number") from error
    has_pairs = len(rows[0]) == 3
    array = np.array(values, dtype=np.int64 if labels else np.float32)
    return Examples([row[0] for row in rows], [row[1] for row in rows] if has_pairs else None, array)
