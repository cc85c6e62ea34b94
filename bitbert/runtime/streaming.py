"""Answering whole files: tab-separated texts in, one JSON object a line out, in constant memory."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from bitbert.errors import NO_ROOM, UserError
from bitbert.files import write_atomically
from bitbert.runtime.forward import Runtime, Text


def predict_file(runtime: Runtime, source: Path, target: Path | None) -> int:
    """Answer every line of ``source``: a text, or two separated by a tab.

    Args:
        target: file of JSON lines with label, score and logits, in the order of the texts; it appears, or changes,
            when the last line is answered. A pipe or device is written as answers come, and so is standard output,
            for None.

    Returns:
        the number of answers.

    Raises:
        UserError: a file cannot be opened, or a line has more than two fields.
    """
    with _open_texts(source) as texts:
        if target is None:
            return _answer(runtime, texts, source, sys.stdout)
        count = 0

        def write(path: Path) -> None:
            nonlocal count
            with open(path, "w", encoding="utf-8", newline="\n") as output:
                count = _answer(runtime, texts, source, output)

        with _errors_as_one("output", target, "written"):
            if target.exists() and not target.is_file():
                write(target)
            else:
                write_atomically(target, write)
        return count


def _answer(runtime: Runtime, texts: TextIO, source: Path, output: TextIO) -> int:
    count = 0
    with _progress(source.stat().st_size) as advance:
        for prediction in runtime.stream(_read_texts(texts, source, advance)):
            output.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
            count += 1
    return count


def _open_texts(source: Path) -> TextIO:
    with _errors_as_one("input", source, "opened"):
        return open(source, encoding="utf-8", newline="\n")


@contextmanager
def _errors_as_one(what: str, path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "free some space" if error.errno in NO_ROOM else "give the path of a file"
        raise UserError(f"{what} {str(path)!r} cannot be {done}: {error.strerror}; {advice}") from error


def _read_texts(file: TextIO, source: Path, advance: Callable[[int], None]) -> Iterator[Text]:
    try:
        for number, line in enumerate(file, 1):
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) > 2:
                raise UserError(f"{source}:{number}: {len(fields)} fields, wanted a text or two separated by a tab")
            yield fields[0] if len(fields) == 1 else (fields[0], fields[1])
            advance(len(line.encode()))
    except UnicodeDecodeError as error:
        raise UserError(f"input {str(source)!r} is not UTF-8 ({error.reason}); convert it first") from error


@contextmanager
def _progress(num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where a person watches, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("answering", total=num_bytes)
        yield lambda step: bar.advance(task, step)
