"""One's own task from CSV, JSON lines or SQuAD's JSON. The columns say what kind of task it is."""

import csv
import io
import json
import sys
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
_OR_NUMBERS = ", or a column score instead of label for numbers"
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
        labels = _class_names({tag for _, tags in found for tag in tags}, train)
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
    classes = () if target == "score" else _class_names({row[-1] for row in rows[0]}, train, _OR_NUMBERS)
    head = SequenceHead(classes, ("accuracy",) if classes else ("pearson", "spearman"))
    return _task(
        train,
        head,
        *(
            text_examples(part, classes, path, labelled=True)
            for part, path in zip(rows, (train, evaluation), strict=True)
        ),
    )


def _class_names(found: set[str], path: Path, advice: str = "") -> tuple[str, ...]:
    if len(found) < 2:
        raise UserError(f"{str(path)!r} has one label only, {next(iter(found))!r}; wanted at least two classes{advice}")
    return tuple(sorted(found))


def _task(train: Path, head: Head[Any], train_set: Examples, eval_set: Examples) -> TaskData:
    name = train.stem if train.stem != "train" else train.resolve().parent.name
    return TaskData(name, name, head, train_set, {"eval": eval_set}, _EPOCHS)


def _read_records(path: Path) -> _Records:
    text = read_text(path)
    if path.suffix == ".jsonl":
        # Not splitlines, which cuts at U+2028 and others that JSON allows inside of a string.
        records = [_parse(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    elif path.suffix == ".json":
        records = _squad_records(_parse(text, path, 1), path)
    elif path.suffix in (".csv", ".tsv"):
        records = _table(text, path)
    else:
        raise UserError(f"task file {str(path)!r} ends in {path.suffix!r}, wanted .csv, .tsv, .jsonl or SQuAD's .json")
    if not records:
        raise UserError(f"task file {str(path)!r} holds no examples; check the file")
    return records


def _table(text: str, path: Path) -> _Records:
    """Rows of a .csv, whose cells may be quoted, or of a .tsv, where a quotation mark is a character, as in GLUE."""
    csv.field_size_limit(sys.maxsize)  # a field may be a whole document
    is_csv = path.suffix == ".csv"
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter="," if is_csv else "\t",
        quoting=csv.QUOTE_MINIMAL if is_csv else csv.QUOTE_NONE,
        strict=True,
    )
    advice = "commas separate columns: quote texts with one" if is_csv else "take tabs out of texts"
    records: _Records = []
    try:
        for record in reader:
            header, extra = list(reader.fieldnames or []), record.get(None)  # the key for cells without a column
            if extra is not None:
                raise UserError(
                    f"{str(path)!r}, line {reader.line_num}: {len(header) + len(extra)} cells, the header has "
                    f"{len(header)}, {header}; {advice}"
                )
            records.append(record)
    except csv.Error as error:
        raise UserError(
            f"{str(path)!r}, in the row after line {reader.line_num}: {error}; repair the quotation marks"
        ) from error
    return records


def _parse(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, more digits or levels than Python reads
        raise UserError(f"{str(path)!r}, line {line}: not valid JSON ({error}); repair the line") from error
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r}, line {line}: holds {type(value).__name__}, wanted an object with columns")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{str(path)!r}, line {line}: {error.object[error.start]!r} is one half of a character; repair the text"
        ) from error
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
        absent = [name for name, value in zip(names, values, strict=True) if value is None]
        if absent or not str(values[-1]).strip():
            raise UserError(
                f"{str(path)!r}, example {number}: no {(absent or names[-1:])[0]!r}; "
                f"wanted {', '.join(names)} in every row"
            )
        rows.append((*(_text(value, path, number) for value in values[:-1]), str(values[-1])))
    if names[-1] == "label":
        _check_classes([record["label"] for record in records], path)
    return rows


def _text(value: Any, path: Path, number: int) -> str:
    """A text or a word; a number counts as its digits."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise UserError(f"{str(path)!r}, example {number}: text {value!r:.80}, wanted a string")
    return str(value)


def _check_classes(values: Sequence[Any], path: Path) -> None:
    """Refuse 1 beside 1.0 or true, which are one class to who wrote them and two as names, and what is no name."""
    kinds = {type(value) for value in values}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"{str(path)!r} has classes of type {names}; wanted one type throughout, e.g. strings")


def _word_tags(records: _Records, path: Path) -> list[tuple[list[str], list[str]]]:
    found = []
    for number, record in enumerate(records, start=1):
        words, tags = record.get("tokens"), record.get("tags")
        if not isinstance(words, list) or not isinstance(tags, list) or not words or len(words) != len(tags):
            raise UserError(f"{str(path)!r}, example {number}: wanted tokens and tags, two lists of the same length")
        found.append(([_text(word, path, number) for word in words], [str(tag) for tag in tags]))
    _check_classes([tag for record in records for tag in record["tags"]], path)
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
        texts, starts = found.get("text", []), found.get("answer_start", [])
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise UserError(
                f"{str(path)!r}, example {number}: answers {found!r:.80}, wanted text and answer_start, "
                "two lists of the same length"
            )
        pairs = list(zip(texts, starts, strict=True))
        if not pairs:
            raise UserError(
                f"{str(path)!r}, example {number}: no answer; wanted SQuAD 1.1, where every question has one"
            )
        for text, start in pairs:
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{str(path)!r}, example {number}: answer {text!r:.80}, wanted a part of the context")
            # A negative number would count from the end, and the answer be found and never learnt.
            if type(start) is not int or start < 0 or context[start : start + len(text)] != text:
                raise UserError(
                    f"{str(path)!r}, example {number}: answer {text!r:.80} is not at character {start!r:.80} of the "
                    "context"
                )
        answers.append(pairs)
    return QuestionExamples(
        [record["question"] for record in records], [record["context"] for record in records], answers
    )
