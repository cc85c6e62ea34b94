"""Contract 1: token shards, Arrow files that `datasets`, pandas and DuckDB open without our code.

A shard folder holds ``shard-00000.arrow``, ... (Arrow IPC file format) and ``manifest.json``. docs/format.md is
the specification. Rows are unmasked and unpadded: masking happens when a batch is made, from (seed, epoch, row).

Columns of a row:
    input_ids           list<uint16>, or list<uint32> for a vocabulary above 65,536: [CLS] A [SEP] B [SEP]
    segment_b_start     uint16: first position of B; equals the row's length when there is no B
    next_sentence_label uint8: 0 = B follows A in the text, 1 = B comes from another document (HF's convention)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bitbert.errors import UserError
from bitbert.files import read_json, sha256_file, write_json_atomically
from bitbert.tokenizer import Tokenizer

FORMAT = "bitbert-shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ROWS_PER_RECORD_BATCH = 1024


@dataclass(frozen=True)
class TokenRow:
    """One sequence, with [CLS] and [SEP] in place, before masking and padding."""

    input_ids: Sequence[int] | np.ndarray
    segment_b_start: int
    next_sentence_label: int


def shard_schema(vocab_size: int) -> pa.Schema:
    """Arrow schema of a shard; the id type is the narrowest that holds the vocabulary."""
    id_type = pa.uint16() if vocab_size <= 2**16 else pa.uint32()
    return pa.schema(
        [
            pa.field("input_ids", pa.list_(pa.field("item", id_type, nullable=False)), nullable=False),
            pa.field("segment_b_start", pa.uint16(), nullable=False),
            pa.field("next_sentence_label", pa.uint8(), nullable=False),
        ]
    )


def write_shards(
    folder: Path,
    rows: Iterable[TokenRow],
    *,
    tokenizer: Tokenizer,
    max_length: int,
    nsp: bool,
    rows_per_shard: int,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write ``rows`` into ``folder`` and return its manifest, which is written last.

    Args:
        folder: an existing folder, normally the temporary one of :func:`bitbert.files.publish_folder`.
        nsp: whether rows are pairs with a next-sentence label.
        provenance: the config and the sources that made the rows, recorded as they are.

    Raises:
        UserError: there is no row at all.
    """
    files = []
    pending: list[TokenRow] = []

    def flush() -> None:
        files.append(_write_shard(folder / f"shard-{len(files):05d}.arrow", pending, shard_schema(tokenizer.vocab_size)))
        pending.clear()

    for row in rows:
        pending.append(row)
        if len(pending) == rows_per_shard:
            flush()
    if pending:
        flush()
    if not files:
        raise UserError(f"no rows for {folder.name.strip('.')}: the sources gave no text; check the paths and the text field")
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rows": sum(file["rows"] for file in files),
        "tokens": sum(file["tokens"] for file in files),
        "max_length": max_length,
        "nsp": nsp,
        "tokenizer": tokenizer.describe(),
        "files": files,
        "provenance": provenance,
    }
    write_json_atomically(folder / MANIFEST, manifest)
    return manifest


def _write_shard(path: Path, rows: list[TokenRow], schema: pa.Schema) -> dict[str, Any]:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(rows), ROWS_PER_RECORD_BATCH):
            chunk = rows[start : start + ROWS_PER_RECORD_BATCH]
            columns = [
                [row.input_ids for row in chunk],
                [row.segment_b_start for row in chunk],
                [row.next_sentence_label for row in chunk],
            ]
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return {
        "name": path.name,
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


class ShardReader:
    """Random access by row into a shard folder, memory-mapped.

    Raises:
        UserError: the folder or manifest is missing or of another format, holds no rows, or a file's size or
            hash differs from the manifest.
    """

    def __init__(self, folder: str | Path, *, verify_hashes: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._record_batches: list[pa.RecordBatch] = []
        first_rows = [0]
        for entry in self.manifest["files"]:
            for batch in _open_shard(self.folder, entry, verify_hashes):
                self._record_batches.append(batch)
                first_rows.append(first_rows[-1] + batch.num_rows)
        self._first_rows = np.array(first_rows)
        if len(self) != self.manifest["rows"]:
            raise UserError(f"shard folder {str(self.folder)!r} holds {len(self)} rows, its manifest says {self.manifest['rows']}; build it again")

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def __getitem__(self, row: int) -> TokenRow:
        """The row at index ``row`` (0-based); its ``input_ids`` is a numpy view into the mapped file."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        index = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        batch, offset = self._record_batches[index], row - int(self._first_rows[index])
        ids = batch.column(0)[offset].values.to_numpy()
        return TokenRow(ids, batch.column(1)[offset].as_py(), batch.column(2)[offset].as_py())

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[row] for row in range(len(self)))

    @property
    def tokenizer(self) -> dict[str, Any]:
        """What the manifest records of the tokenizer (see ``Tokenizer.describe``)."""
        return self.manifest["tokenizer"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a shard folder's manifest."""
    if not folder.is_dir():
        raise UserError(f"shard folder {str(folder)!r} does not exist; build it with bitbert-data CONFIG")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"shard folder {str(folder)!r} is empty or unfinished (no {MANIFEST}); build it with bitbert-data CONFIG")
    manifest = read_json(folder / MANIFEST, "shard manifest")
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise UserError(f"{str(folder / MANIFEST)!r} is {found[0]!r} version {found[1]!r}, wanted {FORMAT!r} version {FORMAT_VERSION}; build the shards again")
    if not manifest["rows"]:
        raise UserError(f"shard folder {str(folder)!r} holds no rows; build it again from a corpus with text")
    return manifest


def _open_shard(folder: Path, entry: dict[str, Any], verify_hash: bool) -> list[pa.RecordBatch]:
    path = folder / entry["name"]
    advice = "build the shards again or copy the file anew"
    if not path.is_file():
        raise UserError(f"shard {str(path)!r} is missing; {advice}")
    if path.stat().st_size != entry["bytes"]:
        raise UserError(f"shard {str(path)!r} has {path.stat().st_size} bytes, its manifest says {entry['bytes']}; {advice}")
    if verify_hash and sha256_file(path) != entry["sha256"]:
        raise UserError(f"shard {str(path)!r} differs from the sha256 in its manifest; {advice}")
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(index) for index in range(reader.num_record_batches)]
