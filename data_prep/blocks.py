"""Blocks: the tokenised documents of a unit, between reading and the cut into rows.

A block is a bounded part of a unit, sorted by the key of its documents, so that the documents of one shard (a
range of keys) lie next to each other in each block. It is three files of plain little-endian arrays:
``.index`` (one record a document), ``.lengths`` (uint32, ids of each sentence) and ``.ids``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitbert.files import write_atomically

# key: the document's place in the shuffled corpus; with tail, 128 bits of the hash of seed and text.
# order: unit and number in the unit, to say which of several equal documents is the first.
INDEX_DTYPE = np.dtype(
    [
        ("key", "<u8"),
        ("tail", "<u8"),
        ("order", "<u8"),
        ("source", "<u4"),
        ("num_sentences", "<u4"),
        ("num_ids", "<u8"),
    ]
)
LENGTH_DTYPE = np.dtype("<u4")
SIGNATURE_DTYPE = np.dtype("<u4")
_DOCUMENT_BITS = 40
_MAX_DOCUMENTS = 1 << 16
_MAX_ID_BYTES = 16 << 20


def document_key(text: str, seed: int) -> tuple[int, int]:
    """128 bits that name a document: its key and its tail. Equal texts, and no others, are equal in both."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def document_order(unit: int, number: int) -> int:
    """Place of a document in the corpus as it is read."""
    return unit << _DOCUMENT_BITS | number


@dataclass(frozen=True)
class Block:
    """One block on disk; ``stem`` is the path of its files without their suffix."""

    stem: Path

    def index(self) -> np.ndarray:
        """Records of ``INDEX_DTYPE``, sorted by (key, tail, order); mapped, not read."""
        return np.memmap(self.stem.with_suffix(".index"), INDEX_DTYPE, "r")

    def lengths(self, start: int, count: int) -> np.ndarray:
        """Lengths of sentences ``start`` to ``start + count`` of the block."""
        return _read_part(self.stem.with_suffix(".lengths"), LENGTH_DTYPE, start, count)

    def ids(self, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        """Ids ``start`` to ``start + count`` of the block."""
        return _read_part(self.stem.with_suffix(".ids"), dtype, start, count)

    def signatures(self, width: int) -> np.ndarray:
        """MinHash signatures of the block's documents: (documents, width), mapped, not read."""
        return np.memmap(self.stem.with_suffix(".minhash"), SIGNATURE_DTYPE, "r").reshape(-1, width)


def _read_part(path: Path, dtype: np.dtype, start: int, count: int) -> np.ndarray:
    return np.fromfile(path, dtype, count, offset=start * dtype.itemsize)


@dataclass
class BlockWriter:
    """Collects the documents of one unit and writes a block whenever enough are there.

    Attributes:
        stem: path of the unit's blocks; a number is added to it.
        names: names of the blocks that are written.
    """

    stem: Path
    dtype: np.dtype
    names: list[str] = field(default_factory=list)
    _records: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    _sentences: list[list[bytes]] = field(default_factory=list)
    _signatures: list[np.ndarray] = field(default_factory=list)
    _id_bytes: int = 0

    def add(
        self,
        key: tuple[int, int],
        order: int,
        source: int,
        sentences: list[bytes],
        signature: np.ndarray | None = None,
    ) -> None:
        """Add a document; ``sentences`` are the bytes of arrays of ``dtype``, none of them empty."""
        num_bytes = sum(map(len, sentences))
        self._records.append((*key, order, source, len(sentences), num_bytes // self.dtype.itemsize))
        self._sentences.append(sentences)
        if signature is not None:
            self._signatures.append(signature)
        self._id_bytes += num_bytes
        if self._id_bytes >= _MAX_ID_BYTES or len(self._records) >= _MAX_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        """Write what is there; called once more at the unit's end."""
        if not self._records:
            return
        by_key = sorted(range(len(self._records)), key=lambda number: self._records[number][:3])
        sentences = [sentence for number in by_key for sentence in self._sentences[number]]
        stem = self.stem.with_name(f"{self.stem.name}-{len(self.names):04d}")
        lengths = np.fromiter(map(len, sentences), LENGTH_DTYPE, len(sentences)) // self.dtype.itemsize
        _write(stem.with_suffix(".lengths"), [lengths.astype(LENGTH_DTYPE).tobytes()])
        _write(stem.with_suffix(".ids"), sentences)
        _write(
            stem.with_suffix(".index"),
            [np.array([self._records[number] for number in by_key], INDEX_DTYPE).tobytes()],
        )
        if self._signatures:
            _write(stem.with_suffix(".minhash"), [self._signatures[number].tobytes() for number in by_key])
        self.names.append(stem.name)
        self._records, self._sentences, self._signatures, self._id_bytes = [], [], [], 0


def _write(path: Path, parts: Sequence[bytes]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb", buffering=1 << 20) as file:
            file.writelines(parts)

    write_atomically(path, write)
