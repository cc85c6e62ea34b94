"""Bytes of a corpus file, decompressed as they are read, and its lines in bounded memory."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_BUFFER_BYTES = 1 << 20


def _open_zst(path: Path) -> Any:
    import zstandard

    return zstandard.open(path, "rb")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zst,
}
COMPRESSED_SUFFIXES = tuple(_OPENERS)


def damage_errors() -> tuple[type[Exception], ...]:
    """What the decompressors raise on a truncated or damaged file."""
    import zstandard

    return (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, OSError)


@contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed when its name says so."""
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        with open(path, "rb", buffering=_BUFFER_BYTES) as plain:
            yield plain
    else:
        with opener(path) as unpacked, io.BufferedReader(unpacked, _BUFFER_BYTES) as buffered:
            yield buffered


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file.

    Attributes:
        number: 1-based in the part that is read.
        start: byte offset of its first byte in the decompressed file.
        content: its bytes with the line end, or None for a line above the limit, which is skipped, not held.
    """

    number: int
    start: int
    content: bytes | None


def read_lines(stream: BinaryIO, limit_bytes: int, start: int = 0) -> Iterator[Line]:
    """Yield lines from ``stream``, which stands at byte ``start``; no more than ``limit_bytes`` are held at once."""
    number = 0
    while content := stream.readline(limit_bytes):
        number += 1
        if len(content) < limit_bytes or content.endswith(b"\n"):
            yield Line(number, start, content)
            start += len(content)
            continue
        first = start
        start += len(content)
        while not content.endswith(b"\n") and (content := stream.readline(_BUFFER_BYTES)):
            start += len(content)
        yield Line(number, first, None)


def seek_to_line(stream: BinaryIO, offset: int) -> int:
    """Move ``stream`` to the first line that begins at byte ``offset`` or later; return where that is."""
    if offset == 0:
        return 0
    stream.seek(offset - 1)
    position = offset - 1
    while piece := stream.readline(_BUFFER_BYTES):
        position += len(piece)
        if piece.endswith(b"\n"):
            break
    return position
