"""Documents from local files (jsonl, json, txt, parquet, plain or compressed) and from Hugging Face datasets."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from bitbert.errors import UserError
from bitbert.resources import is_package_resource, package_resource

from .config import SourceConfig

_DECOMPRESSORS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_COMPRESSED = (*_DECOMPRESSORS, ".zst")


def read_documents(source: SourceConfig) -> Iterator[str]:
    """Yield the text of each document of ``source``, in a fixed order, without loading it whole.

    Raises:
        UserError: nothing is there, a file is damaged or of an unknown kind, or a row lacks the text field.
    """
    if source.dataset is not None:
        yield from _read_dataset(source)
    else:
        for file in source_files(source):
            yield from _read_file(file, source.text_field)


def source_files(source: SourceConfig) -> list[Path]:
    """The local files of a source, sorted by name."""
    assert source.path is not None  # the config demands it where there is no dataset
    if is_package_resource(source.path):
        return [package_resource(source.path)]
    path = Path(source.path).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in _READERS)
    else:
        root = Path(path.anchor or ".")
        files = sorted(file for file in root.glob(str(path.relative_to(root) if path.anchor else path)) if file.is_file())
    if not files:
        kinds = ", ".join(sorted(_READERS))
        raise UserError(f"corpus {source.path!r}: no file there; give a file, a glob or a folder of {kinds} files, plain or compressed ({', '.join(_COMPRESSED)})")
    return files


def _read_file(path: Path, text_field: str) -> Iterator[str]:
    kind = _kind(path)
    if kind not in _READERS:
        raise UserError(f"corpus file {str(path)!r}: unknown kind {kind!r}; wanted {', '.join(sorted(_READERS))}, plain or compressed ({', '.join(_COMPRESSED)})")
    try:
        yield from _READERS[kind](path, text_field)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"corpus file {str(path)!r} cannot be read to its end ({error}); copy it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"corpus file {str(path)!r} is not UTF-8 (byte {error.object[error.start]:#x} at {error.start} of a block); convert it to UTF-8") from error


def _kind(path: Path) -> str:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes = suffixes[:-1]
    return suffixes[-1].lstrip(".") if suffixes else ""


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    binary: BinaryIO
    if path.suffix == ".zst":
        import zstandard

        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as binary:
            yield io.TextIOWrapper(binary, encoding="utf-8")
    else:
        with _DECOMPRESSORS.get(path.suffix, lambda p: open(p, "rb"))(path) as binary:
            yield io.TextIOWrapper(binary, encoding="utf-8")


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"corpus file {str(path)!r}, line {number}: not JSON ({error.msg}); one object a line is wanted") from error
                yield _text_of(row, text_field, f"{path}, line {number}")


def _read_json(path: Path, text_field: str) -> Iterator[str]:
    """One JSON document: a list of objects, or an object whose values are objects."""
    with _open_text(path) as file:
        try:
            rows = json.load(file)
        except json.JSONDecodeError as error:
            raise UserError(f"corpus file {str(path)!r} is not JSON ({error}); copy it again") from error
    if isinstance(rows, dict):
        rows = list(rows.values())
    for number, row in enumerate(rows, start=1):
        yield _text_of(row, text_field, f"{path}, entry {number}")


def _read_txt(path: Path, text_field: str) -> Iterator[str]:
    """Documents separated by blank lines, as in original BERT; ``text_field`` has no meaning here."""
    block: list[str] = []
    with _open_text(path) as lines:
        for line in lines:
            if line.strip():
                block.append(line)
            elif block:
                yield "".join(block)
                block = []
    if block:
        yield "".join(block)


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if text_field not in file.schema_arrow.names:
        raise UserError(f"corpus file {str(path)!r} has no column {text_field!r}; columns: {', '.join(file.schema_arrow.names)}; set text_field")
    for batch in file.iter_batches(batch_size=256, columns=[text_field]):
        for text in batch.column(0).to_pylist():
            yield text or ""


def _text_of(row: Any, text_field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"corpus {where}: no text in field {text_field!r}; found {found}; set text_field to the field that holds the text")
    return row[text_field]


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "txt": _read_txt,
    "parquet": _read_parquet,
}


def _read_dataset(source: SourceConfig) -> Iterator[str]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.dataset, source.name, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:  # offline, unknown id, script-based: the hub raises many kinds
        reason = str(error).splitlines()[0]
        raise UserError(f"dataset {source.dataset!r} ({source.name}) cannot be opened: {reason}; check the id and the network, or use a local path") from error
    for number, row in enumerate(rows, start=1):
        yield _text_of(row, source.text_field, f"{source.dataset}, row {number}")
