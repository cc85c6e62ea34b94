"""One's own task from CSV, JSON lines or SQuAD's JSON. The columns say what kind of task it is."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitbert.errors import UserError

from .data import Row, TaskData, read_text, text_examples
from .head import Examples, Head
from .sequence import SequenceHead
from .spans import QuestionExamples, SpanHead
from .tokens import TokenHead, WordExamples

_TEXTS = (("text_a", "text_b"), ("text",))
_KINDS = (
    "text,label or text_a,text_b,label (classes), the same with score for label (regression), "
    "tokens,tags (a class a word), question,context,answers (as in SQuAD)"
)
_EPOCHS = 3
_Records = list[dict[str, Any]]


def read_own_task(train: Path, evaluation: Path) -> TaskData:
    """Read one's own training and evaluation file; labels are numbered in sorted order.

    Raises:
        UserError: a file or column is missing, a label is wrong, or both files are not of one kind.
    """
    train_rows, eval_rows = _read_records(train), _read_records(evaluation)
    columns = set(train_rows[0])
    if {"question", "context", "answers"} <= columns:
        sets = [_questions(rows, path) for rows, path in ((train_rows, train), (eval_rows, evaluation))]
        return _task(train, SpanHead(), *sets)
    if {"tokens", "tags"} <= columns:
        found = _word_tags(train_rows, train)
        labels = tuple(sorted({tag for _, tags in found for tag in tags}))
        words = [
            _words(rows, labels, path)
            for rows, path in ((found, train), (_word_tags(eval_rows, evaluation), evaluation))
        ]
        return _task(train, TokenHead(labels), *words)
    texts = next((names for names in _TEXTS if set(names) <= columns), None)
    target = next((name for name in ("label", "score") if name in columns), None)
    if texts is None or target is None:
        raise UserError(f"{str(train)!r} has columns {sorted(columns)}, wanted {_KINDS}")
    names = (*texts, target)
    rows = [_rows(records, names, path) for records, path in ((train_rows, train), (eval_rows, evaluation))]
    classes = () if target == "score" else tuple(sorted({row[-1] for row in rows[0]}))
    if target == "label" and len(classes) < 2:
        raise UserError(
            f"{str(train)!r} has one label only, {classes[0]!r}; wanted at least two classes, "
            "or a column score instead of label for numbers"
        )
    head = SequenceHead(classes, ("accuracy",) if classes else ("pearson", "spearman"))
    return _task(
        train,
        head,
        *(
            text_examples(part, classes, path, labelled=True)
            for part, path in zip(rows, (train, evaluation), strict=True)
        ),
    )


def _task(train: Path, head: Head[Any], train_set: Examples, eval_set: Examples) -> TaskData:
    name = train.stem if train.stem != "train" else train.resolve().parent.name
    return TaskData(name, name, head, train_set, {"eval": eval_set}, _EPOCHS)


def _read_records(path: Path) -> _Records:
    text = read_text(path)
    if path.suffix == ".jsonl":
        records = [_parse(line, path, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    elif path.suffix == ".json":
        records = _squad_records(_parse(text, path, 1), path)
    elif path.suffix in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
        records = list(reader)
    else:
        raise UserError(f"task file {str(path)!r} ends in {path.suffix!r}, wanted .csv, .tsv, .jsonl or SQuAD's .json")
    if not records:
        raise UserError(f"task file {str(path)!r} holds no examples; check the file")
    return records


def _parse(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r}, line {line}: not valid JSON ({error}); repair the line") from error
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r}, line {line}: holds {type(value).__name__}, wanted an object with columns")
    return value


def _squad_records(data: dict[str, Any], path: Path) -> _Records:
    """SQuAD's nesting, article > paragraph > question, laid flat."""
    try:
        return [
            {
                "question": question["question"],
                "context": paragraph["context"],
                "answers": {
                    "text": [answer["text"] for answer in question["answers"]],
                    "answer_start": [answer["answer_start"] for answer in question["answers"]],
                },
            }
            for article in data["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is not in SQuAD's format (missing {error}); wanted data, paragraphs, context, qas, answers"
        ) from error


def _rows(records: _Records, names: Sequence[str], path: Path) -> list[Row]:
    rows = []
    for number, record in enumerate(records, start=1):
        values = [record.get(name) for name in names]
        if any(value is None for value in values):
            absent = names[values.index(None)]
            raise UserError(f"{str(path)!r}, example {number}: no {absent!r}; wanted {', '.join(names)} in every row")
        rows.append(tuple(str(value) for value in values))
    return rows


def _word_tags(records: _Records, path: Path) -> list[tuple[list[str], list[str]]]:
    found = []
    for number, record in enumerate(records, start=1):
        words, tags = record.get("tokens"), record.get("tags")
        if not isinstance(words, list) or not isinstance(tags, list) or not words or len(words) != len(tags):
            raise UserError(f"{str(path)!r}, example {number}: wanted tokens and tags, two lists of the same length")
        found.append(([str(word) for word in words], [str(tag) for tag in tags]))
    return found


def _words(rows: list[tuple[list[str], list[str]]], labels: tuple[str, ...], path: Path) -> WordExamples:
    numbers = {label: number for number, label in enumerate(labels)}
    for number, (_, tags) in enumerate(rows, start=1):
        unknown = [tag for tag in tags if tag not in numbers]
        if unknown:
            raise UserError(f"{str(path)!r}, example {number}: tag {unknown[0]!r}, wanted one of {', '.join(labels)}")
    return WordExamples([words for words, _ in rows], [[numbers[tag] for tag in tags] for _, tags in rows])


def _questions(records: _Records, path: Path) -> QuestionExamples:
    answers = []
    for number, record in enumerate(records, start=1):
        context, found = record.get("context"), record.get("answers")
        if not isinstance(context, str) or not isinstance(record.get("question"), str) or not isinstance(found, dict):
            raise UserError(f"{str(path)!r}, example {number}: wanted question, context and answers as in SQuAD")
        pairs = list(zip(found.get("text", []), found.get("answer_start", []), strict=False))
        if not pairs:
            raise UserError(
                f"{str(path)!r}, example {number}: no answer; wanted SQuAD 1.1, where every question has one"
            )
        for text, start in pairs:
            if not isinstance(start, int) or context[start : start + len(text)] != text:
                raise UserError(
                    f"{str(path)!r}, example {number}: answer {text!r} is not at character {start} of the context"
                )
        answers.append(pairs)
    return QuestionExamples(
        [record["question"] for record in records], [record["context"] for record in records], answers
    )
