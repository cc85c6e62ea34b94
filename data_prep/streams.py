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
_PACKED_BYTES = 1 << 14  # small: it may unpack to a thousand times as much


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike zstandard's own reader it tells a truncated file from a whole one."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = open(path, "rb")  # noqa: SIM115 - closed in close()
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._is_inside = False
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._is_inside = self._new_frame(), False
            packed = packed or self._file.read(_PACKED_BYTES)
            if not packed:
                if self._is_inside:
                    raise EOFError("compressed file ended before its end mark")
                return 0
            self._is_inside = True
            self._pending = self._frame.decompress(packed)
        count = min(len(buffer), len(self._pending))
        buffer[:count], self._pending = self._pending[:count], self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _ZstdStream,
}
COMPRESSED_SUFFIXES = tuple(_OPENERS)


def damage_errors() -> tuple[type[Exception], ...]:
    """What the decompressors and the parquet reader raise on a truncated or damaged file."""
    import pyarrow as pa
    import zstandard

    return (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, pa.ArrowInvalid, OSError)


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
