"""Contract 1: token shards, Arrow files that `datasets`, pandas and DuckDB open without our code.

A shard folder holds ``shard-00000.arrow``, ... (Arrow IPC file format) and ``manifest.json``.
docs/format-shards.md is the specification. Rows are unmasked and unpadded: masking happens when a batch is
made, from (seed, epoch, row).

Columns of a row:
    input_ids           list<uint16>, or list<uint32> for a vocabulary above 65,536: [CLS] A [SEP] B [SEP]
    segment_b_start     uint16: first position of B; equals the row's length when there is no B
    next_sentence_label uint8: 0 = B follows A in the text, 1 = B comes from another document (HF's convention)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from bitbert.errors import UserError
from bitbert.files import read_json, sha256_file, write_atomically, write_json_atomically
from bitbert.tokenizer import Tokenizer

FORMAT = "bitbert-shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ROWS_PER_RECORD_BATCH = 1024
_MANIFEST_KEYS = {"rows": int, "tokens": int, "max_length": int, "nsp": bool, "tokenizer": dict, "files": list}
_FILE_KEYS = {"name": str, "rows": int, "tokens": int, "bytes": int, "sha256": str}
_IDS = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
_TOKENIZER_KEYS = {"fingerprint": str, "vocab_size": int, **dict.fromkeys(_IDS, int)}
_ADVICE = "build the shards again or copy the file anew"


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


@dataclass(frozen=True)
class RowColumns:
    """Many rows as arrays.

    Attributes:
        ids: ids of all rows, one row after the other, of the schema's id type.
        lengths: ids of each row, (rows,).
        segment_b_starts: (rows,), uint16.
        next_sentence_labels: (rows,), uint8.
    """

    ids: np.ndarray
    lengths: np.ndarray
    segment_b_starts: np.ndarray
    next_sentence_labels: np.ndarray


def write_shard(path: Path, columns: RowColumns, vocab_size: int) -> dict[str, Any]:
    """Write one shard, atomically, and return its entry for the manifest."""
    schema = shard_schema(vocab_size)
    edges = np.concatenate([[0], np.cumsum(columns.lengths, dtype=np.int64)])

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for start in range(0, len(columns.lengths), ROWS_PER_RECORD_BATCH):
                writer.write_batch(_record_batch(columns, edges, start, schema))

    write_atomically(path, write)
    return {
        "name": path.name,
        "rows": len(columns.lengths),
        "tokens": int(edges[-1]),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def _record_batch(columns: RowColumns, edges: np.ndarray, start: int, schema: pa.Schema) -> pa.RecordBatch:
    end = min(start + ROWS_PER_RECORD_BATCH, len(columns.lengths))
    list_type = schema.field("input_ids").type
    ids = pa.array(columns.ids[edges[start] : edges[end]], type=list_type.value_type)
    offsets = pa.array((edges[start : end + 1] - edges[start]).astype(np.int32))
    arrays = [
        pa.ListArray.from_arrays(offsets, ids, type=list_type),
        pa.array(columns.segment_b_starts[start:end], type=pa.uint16()),
        pa.array(columns.next_sentence_labels[start:end], type=pa.uint8()),
    ]
    return pa.record_batch(arrays, schema=schema)


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
    files: list[dict[str, Any]] = []
    pending = iter(rows)
    while chunk := list(islice(pending, rows_per_shard)):
        path = folder / f"shard-{len(files):05d}.arrow"
        files.append(write_shard(path, _columns(chunk, tokenizer.vocab_size), tokenizer.vocab_size))
    return write_manifest(folder, files, tokenizer=tokenizer, max_length=max_length, nsp=nsp, provenance=provenance)


def write_manifest(
    folder: Path,
    files: list[dict[str, Any]],
    *,
    tokenizer: Tokenizer,
    max_length: int,
    nsp: bool,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write the manifest of the shards in ``folder``, whose entries ``files`` come from :func:`write_shard`.

    Raises:
        UserError: there is no row at all.
    """
    if not sum(file["rows"] for file in files):
        raise UserError(
            f"no rows for {folder.name.strip('.')}: the sources gave no text; check the paths and the text field"
        )
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


def _columns(rows: list[TokenRow], vocab_size: int) -> RowColumns:
    id_type = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    return RowColumns(
        np.concatenate([np.asarray(row.input_ids, dtype=id_type) for row in rows]),
        np.array([len(row.input_ids) for row in rows], dtype=np.int64),
        np.array([row.segment_b_start for row in rows], dtype=np.uint16),
        np.array([row.next_sentence_label for row in rows], dtype=np.uint8),
    )


BadShards = Literal["fail", "skip"]


class ShardReader:
    """Random access by row into a shard folder, memory-mapped.

    Args:
        verify_hashes: read each file once and compare its sha256 with the manifest.
        bad_shards: ``"fail"`` refuses a folder with a missing or damaged file; ``"skip"`` leaves the rows of
            such a file out, and names it in ``skipped``. Rows behind it move up, so the order of an epoch is
            another one: it is a way to go on, not a way to repeat a run.

    Attributes:
        files: the manifest's entries of the files that are read.
        skipped: one message for each file that was left out.

    Raises:
        UserError: the folder or manifest is missing or of another format or holds no rows, or, under
            ``"fail"``, a file's size or hash differs from the manifest.
    """

    def __init__(self, folder: str | Path, *, verify_hashes: bool = True, bad_shards: BadShards = "fail") -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.skipped: list[str] = []
        self.files: list[dict[str, Any]] = []
        schema = shard_schema(self.manifest["tokenizer"]["vocab_size"])
        self._record_batches: list[pa.RecordBatch] = []
        for entry in self.manifest["files"]:
            try:
                self._record_batches.extend(_open_shard(self.folder, entry, schema, verify_hashes))
                self.files.append(entry)
            except UserError as error:
                if bad_shards == "fail":
                    raise UserError(
                        f"{error}; or leave its {entry['rows']} rows out of a new run, by data.bad_shards=skip"
                    ) from error
                self.skipped.append(str(error))
        if not self._record_batches:
            raise UserError(f"shard folder {str(self.folder)!r} has no good shard left; {_ADVICE}")
        self._first_rows = np.cumsum([0, *(batch.num_rows for batch in self._record_batches)])

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
    """Read and check a shard folder's manifest.

    Raises:
        UserError: it is missing, of another format or damaged, or there are no rows.
    """
    if not folder.is_dir():
        raise UserError(f"shard folder {str(folder)!r} does not exist; build it with bitbert-data CONFIG")
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"shard folder {str(folder)!r} is empty or unfinished (no {MANIFEST}); build it with bitbert-data CONFIG"
        )
    manifest = read_json(folder / MANIFEST, "shard manifest")
    found = (manifest.get("format"), manifest.get("format_version")) if isinstance(manifest, dict) else (None, None)
    if found != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{str(folder / MANIFEST)!r} is {found[0]!r} version {found[1]!r}, "
            f"wanted {FORMAT!r} version {FORMAT_VERSION}; build the shards again"
        )
    _require(manifest, _MANIFEST_KEYS, folder, "")
    _require(manifest["tokenizer"], _TOKENIZER_KEYS, folder, "tokenizer.")
    for number, entry in enumerate(manifest["files"]):
        _require(entry, _FILE_KEYS, folder, f"files[{number}].")
    strange = [entry["name"] for entry in manifest["files"] if Path(entry["name"]).name != entry["name"]]
    if strange:
        raise UserError(f"{str(folder / MANIFEST)!r} names files outside of its folder ({strange[0]!r}); {_ADVICE}")
    if not manifest["rows"]:
        raise UserError(f"shard folder {str(folder)!r} holds no rows; build it again from a corpus with text")
    return manifest


def _require(found: Any, kinds: dict[str, type], folder: Path, where: str) -> None:
    """Check that a part of the manifest has these keys with values of these kinds, numbers of at least 0."""
    for key, kind in kinds.items():
        value = found.get(key) if isinstance(found, dict) else None
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise UserError(
                f"{str(folder / MANIFEST)!r}: {where}{key} is {value!r:.80}, wanted {kind.__name__}; "
                f"the file is damaged, {_ADVICE}"
            )


def verify_shards(folder: Path) -> list[str]:
    """Check every file of a shard folder: presence, size, sha256, schema, rows, tokens. Return what is wrong.

    Raises:
        UserError: the manifest itself cannot be read.
    """
    manifest = read_manifest(folder)
    problems = []
    for entry in manifest["files"]:
        try:
            batches = _open_shard(folder, entry, shard_schema(manifest["tokenizer"]["vocab_size"]), verify_hash=True)
        except UserError as error:
            problems.append(str(error))
            continue
        tokens = sum(len(batch.column(0).values) for batch in batches)
        if tokens != entry["tokens"]:
            problems.append(
                f"shard {str(folder / entry['name'])!r} holds {tokens} tokens, "
                f"its manifest says {entry['tokens']}; {_ADVICE}"
            )
    for key in ("rows", "tokens"):
        total = sum(entry[key] for entry in manifest["files"])
        if total != manifest[key]:
            problems.append(f"{str(folder / MANIFEST)!r} says {manifest[key]} {key}, its files have {total}; {_ADVICE}")
    strangers = {path.name for path in folder.glob("*.arrow")} - {entry["name"] for entry in manifest["files"]}
    problems += [f"{str(folder / name)!r} is in no manifest; remove it" for name in sorted(strangers)]
    return problems


def _open_shard(folder: Path, entry: dict[str, Any], schema: pa.Schema, verify_hash: bool) -> list[pa.RecordBatch]:
    path = folder / entry["name"]
    if not path.is_file():
        raise UserError(f"shard {str(path)!r} is missing; {_ADVICE}")
    if path.stat().st_size != entry["bytes"]:
        raise UserError(
            f"shard {str(path)!r} has {path.stat().st_size} bytes, its manifest says {entry['bytes']}; {_ADVICE}"
        )
    if verify_hash and sha256_file(path) != entry["sha256"]:
        raise UserError(f"shard {str(path)!r} differs from the sha256 in its manifest; {_ADVICE}")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"shard {str(path)!r} is no whole Arrow file ({error}); {_ADVICE}") from error
    if reader.schema != schema:
        raise UserError(
            f"shard {str(path)!r} has the columns {reader.schema.names} of other types than the format's; {_ADVICE}"
        )
    rows = sum(batch.num_rows for batch in batches)
    if rows != entry["rows"]:
        raise UserError(f"shard {str(path)!r} holds {rows} rows, its manifest says {entry['rows']}; {_ADVICE}")
    return batches
