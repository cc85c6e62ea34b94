"""The documents of one unit: JSON lines, JSON, text and parquet files, and datasets of the hub.

A row that cannot be used stops the build with its file and line, or is counted in ``drops`` and left out, as
the policy says. An empty or an enormous document is never an error: it is counted.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from bitbert.errors import UserError

from .config import Policy, SourceConfig
from .streams import Line, damage_errors, open_stream, read_lines, seek_to_line
from .units import Unit

TOO_LONG, INVALID_UTF8, INVALID_ROW, DAMAGED_FILE = "too_long", "invalid_utf8", "invalid_row", "damaged_file"
_LARGEST_JSON_BYTES = 512 << 20
_LINES_THAT_TELL_THE_KIND = 16
_ROWS_PER_PARQUET_BATCH = 64
# JSON may spell one character as \uXXXX: six bytes.
_BYTES_PER_CHAR = 6
_ROW_OVERHEAD_BYTES = 1 << 16


@dataclass
class UnitReader:
    """Reads one unit, once.

    Attributes:
        drops: what was left out and why, counted while the documents are read.
        notes: one line for each damaged file that policy ``skip`` left before its end.
    """

    unit: Unit
    source: SourceConfig
    policy: Policy
    max_chars: int
    drops: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def documents(self) -> Iterator[str]:
        """Yield the texts in the unit's order.

        Raises:
            UserError: under policy ``fail``, for a damaged file, bytes that are not UTF-8, or a row without text.
        """
        read = _READERS[self.unit.kind]
        try:
            yield from read(self)
        except damage_errors() as error:
            reason = str(error) or type(error).__name__
            message = f"corpus file {self.unit.title!r} cannot be read to its end ({reason}); copy it again"
            self._refuse(DAMAGED_FILE, message)
            self.notes.append(message)

    @property
    def line_limit_bytes(self) -> int:
        return self.max_chars * _BYTES_PER_CHAR + _ROW_OVERHEAD_BYTES

    def decode(self, content: bytes, where: str) -> str | None:
        """UTF-8 text, or None where it is not UTF-8 and the policy is to skip."""
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {content[error.start]:#04x} at offset {error.start}"
            message = f"not UTF-8 ({byte}); convert the file to UTF-8"
            self._refuse(INVALID_UTF8, self._at(where, message))
            return None

    def parse(self, content: bytes, where: str, wanted: str = "one object a line") -> Any:
        """The JSON value, or None where it is not JSON and the policy is to skip."""
        text = self.decode(content, where)
        if text is None:
            return None
        try:
            return json.loads(text.removeprefix("\ufeff"))  # the byte order mark with which some editors begin a file
        except RecursionError:
            reason = "nested too deeply"
        except ValueError as error:  # not JSON, or an integer of more digits than Python reads
            reason = getattr(error, "msg", "") or str(error).partition(":")[0]
        self.refuse_row(where, f"not JSON ({reason}); {wanted} is wanted")
        return None

    def text_of(self, row: Any, where: str) -> str | None:
        """The text field of a row, or None where it has none and the policy is to skip."""
        if isinstance(row, dict) and isinstance(text := row.get(self.source.text_field), str):
            return text
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        wanted = self.source.text_field
        message = f"no text in field {wanted!r}; found {found}; set text_field to the field that holds the text"
        self.refuse_row(where, message)
        return None

    def refuse_row(self, where: str, message: str) -> None:
        """Stop the build with ``message``, or count the row as invalid."""
        self._refuse(INVALID_ROW, self._at(where, message))

    def _at(self, where: str, message: str) -> str:
        return f"corpus {self.unit.origin!r}, {where}: {message}, or set bad_input=skip to leave such rows out"

    def _refuse(self, reason: str, message: str) -> None:
        if self.policy == "fail":
            raise UserError(message)
        self.drops[reason] += 1


def _read_jsonl(reader: UnitReader) -> Iterator[str]:
    for line in _unit_lines(reader):
        if reader.unit.stop is not None and line.start >= reader.unit.stop:
            return
        if line.content is None:
            reader.drops[TOO_LONG] += 1
        elif line.content.strip():
            where = _place(reader.unit, line)
            row = reader.parse(line.content, where)
            if row is not None and (text := reader.text_of(row, where)) is not None:
                yield text


def _unit_lines(reader: UnitReader) -> Iterator[Line]:
    """Lines from the first one that begins in the unit on, to the end of the file: the caller knows where to stop."""
    with open_stream(Path(reader.unit.origin)) as stream:
        yield from read_lines(stream, reader.line_limit_bytes, seek_to_line(stream, reader.unit.start))


def _place(unit: Unit, line: Line) -> str:
    return f"line {line.number}" if unit.start == 0 else f"byte {line.start}"


def _read_txt(reader: UnitReader) -> Iterator[str]:
    """Documents separated by blank lines, as in original BERT; ``text_field`` has no meaning here.

    A document belongs to the unit that holds the blank line before it; the first one to the first unit.
    """
    unit = reader.unit
    block: list[bytes] = []
    size, where, inside = 0, "", unit.start == 0
    for line in _unit_lines(reader):
        if line.content is not None and not line.content.strip():
            yield from _finish_block(reader, block, size, where)
            block, size, inside = [], 0, True
            if unit.stop is not None and line.start >= unit.stop:
                return
        elif inside:
            where = where if block else _place(unit, line)
            size += reader.line_limit_bytes if line.content is None else len(line.content)
            if size < reader.line_limit_bytes:  # beyond it the block is dropped as a whole: hold no more of it
                block.append(line.content or b"")
    yield from _finish_block(reader, block, size, where)


def _finish_block(reader: UnitReader, block: list[bytes], size: int, where: str) -> Iterator[str]:
    if size >= reader.line_limit_bytes:
        reader.drops[TOO_LONG] += 1
    elif block and (text := reader.decode(b"".join(block), where)) is not None:
        yield text


def _read_json(reader: UnitReader) -> Iterator[str]:
    """One JSON document: a list of objects, or an object whose values are objects. Or else JSON lines, or one row."""
    path, wanted = Path(reader.unit.origin), "a list of objects, or one object a line,"
    if _holds_json_lines(path, reader.line_limit_bytes):
        yield from _read_jsonl(reader)
        return
    with open_stream(path) as stream:
        content = stream.read(_LARGEST_JSON_BYTES + 1)
    if len(content) > _LARGEST_JSON_BYTES:
        raise UserError(
            f"corpus file {reader.unit.origin!r} is one JSON document above {_LARGEST_JSON_BYTES >> 20} MiB, "
            "which must be held in memory whole; convert it to JSON lines (.jsonl)"
        )
    rows = reader.parse(content, "the whole file", wanted)
    if isinstance(rows, dict):
        is_row = isinstance(rows.get(reader.source.text_field), str)
        rows = [rows] if is_row else list(rows.values())
    if rows is not None and not isinstance(rows, list):
        reader.refuse_row("the whole file", f"holds {type(rows).__name__}; {wanted} is wanted")
        return
    for number, row in enumerate(rows or [], start=1):
        if (text := reader.text_of(row, f"entry {number}")) is not None:
            yield text


def _holds_json_lines(path: Path, limit_bytes: int) -> bool:
    """Whether, among the first lines, one ends an object and the next begins one: no JSON document holds that.

    Rows that are no JSON do not hide the kind of the file, and nothing but these lines is read.
    """
    with open_stream(path) as stream:
        lines = (
            b"too long" if line.content is None else line.content.strip() for line in read_lines(stream, limit_bytes)
        )
        first = islice(filter(None, lines), _LINES_THAT_TELL_THE_KIND)
        return any(line.endswith(b"}") and following.startswith(b"{") for line, following in pairwise(first))


def _read_parquet(reader: UnitReader) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    unit, column = reader.unit, reader.source.text_field
    with pq.ParquetFile(unit.origin) as file:
        _check_text_column(unit, file.schema_arrow, column)
        groups = range(unit.start, file.num_row_groups if unit.stop is None else unit.stop)
        number = sum(file.metadata.row_group(group).num_rows for group in range(unit.start))
        for batch in file.iter_batches(batch_size=_ROWS_PER_PARQUET_BATCH, row_groups=groups, columns=[column]):
            # As bytes: Arrow does not check that its strings are UTF-8, and one that is not concerns its row alone.
            for content in batch.column(0).cast(pa.large_binary()).to_pylist():
                number += 1
                if (text := reader.decode(content or b"", f"row {number}")) is not None:
                    yield text


def _check_text_column(unit: Unit, schema: Any, column: str) -> None:
    """``schema`` is pyarrow's.

    Raises:
        UserError: the file has no such column, or it holds no text.
    """
    import pyarrow as pa

    if column not in schema.names:
        known = ", ".join(schema.names)
        raise UserError(f"corpus file {unit.origin!r} has no column {column!r}; columns: {known}; set text_field")
    held = schema.types[schema.names.index(column)]
    values = held.value_type if pa.types.is_dictionary(held) else held
    if not any(is_text(values) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        texts = f"corpus file {unit.origin!r}: column {column!r} holds {held}, wanted strings"
        raise UserError(f"{texts}; set text_field to the column that holds the text")


def _read_hub(reader: UnitReader) -> Iterator[str]:
    from .sources import read_hub_rows

    for number, row in enumerate(read_hub_rows(reader.unit, reader.source), start=1):
        if (text := reader.text_of(row, f"row {number}")) is not None:
            yield text


_READERS: dict[str, Callable[[UnitReader], Iterator[str]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "txt": _read_txt,
    "parquet": _read_parquet,
    "hub": _read_hub,
}
