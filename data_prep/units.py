"""Units of reading: the parts of a corpus that workers and array tasks take, whatever their number.

A unit is a byte range of a plain .jsonl or .txt file, some row groups of a .parquet file, a whole compressed
or .json file, or one shard of a Hugging Face dataset. The list depends on the corpus and the config alone.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitbert.errors import UserError
from bitbert.resources import is_package_resource, package_resource

from .config import Policy, SourceConfig
from .streams import COMPRESSED_SUFFIXES

KINDS = ("json", "jsonl", "parquet", "txt")
RANGE_BYTES = 64 << 20


@dataclass(frozen=True)
class Unit:
    """One part of one source.

    Attributes:
        source: index of the source in the config.
        kind: one of ``KINDS``, or ``"hub"``.
        origin: path of the file, or the dataset's id.
        start, stop: bytes, row groups or hub shard that the unit covers; ``stop`` is None for "to the end".
        num_bytes: size on disk, to hand out the long units first; 0 where it is not known.
        stamp: the file's time of change (ns), or the dataset's commit: another one makes another build.
    """

    source: int
    kind: str
    origin: str
    start: int
    stop: int | None
    num_bytes: int
    stamp: str

    def describe(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @property
    def title(self) -> str:
        """How messages name the unit."""
        covered = "" if self.stop is None else f" [{self.start}:{self.stop}]"
        return f"{self.origin}{covered}"


def source_files(source: SourceConfig, output: Path | None = None) -> list[Path]:
    """The local files of a source, sorted by name; of a folder or glob, not those that the build of ``output`` makes.

    Raises:
        UserError: nothing is there.
    """
    assert source.path is not None  # the config demands it where there is no dataset
    if is_package_resource(source.path):
        return [package_resource(source.path)]
    path = Path(source.path).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file_kind(file) in KINDS)
    else:
        root = Path(path.anchor or ".")
        try:
            files = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
        except ValueError as error:
            raise UserError(f"corpus {source.path!r} is no glob ({error}); use * within a name, ** alone") from error
    found = len(files)
    files = files if output is None else _without_own_files(files, output)
    if not files:
        but = f" but those of the output {str(output)!r}" if found else ""
        raise UserError(
            f"corpus {source.path!r}: no file there{but}; give a file, a glob or a folder of {_wanted_kinds()}"
        )
    return files


def _without_own_files(files: list[Path], output: Path) -> list[Path]:
    """``files`` less those in the output, or in the hidden folders of unfinished builds beside it."""
    own = output.resolve()

    def is_own(folder: Path) -> bool:
        below = [part for part in (folder, *folder.parents) if part.parent == own.parent]
        return any(part.name == own.name or part.name.startswith(f".{own.name}.") for part in below)

    own_folders = {folder for folder in {file.parent for file in files} if is_own(folder.resolve())}
    return [file for file in files if file.parent not in own_folders]


def file_kind(path: Path) -> str:
    """``"jsonl"`` for a.jsonl and for a.jsonl.xz."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes = suffixes[:-1]
    return suffixes[-1].lstrip(".") if suffixes else ""


def file_units(source: int, path: Path, range_bytes: int, policy: Policy = "fail") -> list[Unit]:
    """The units of one file of source number ``source``.

    Raises:
        UserError: the file is of an unknown kind, or, under policy ``fail``, a damaged parquet file.
    """
    kind = file_kind(path)
    if kind not in KINDS:
        raise UserError(f"corpus file {str(path)!r}: unknown kind {kind!r}; wanted {_wanted_kinds()}")
    status = path.stat()

    def unit(start: int, stop: int | None, num_bytes: int) -> Unit:
        return Unit(source, kind, str(path), start, stop, num_bytes, str(status.st_mtime_ns))

    if kind == "parquet":
        try:
            return [unit(start, stop, num_bytes) for start, stop, num_bytes in _row_group_ranges(path, range_bytes)]
        except UserError:
            if policy == "fail":
                raise
            return [unit(0, None, status.st_size)]  # its reader meets the damage again, and counts the file
    if kind == "json" or path.suffix in COMPRESSED_SUFFIXES or status.st_size <= range_bytes:
        return [unit(0, None, status.st_size)]
    starts = range(0, status.st_size, range_bytes)
    return [unit(start, min(start + range_bytes, status.st_size), range_bytes) for start in starts]


def _row_group_ranges(path: Path, range_bytes: int) -> list[tuple[int, int, int]]:
    """(first row group, end, bytes) of each unit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.ParquetFile(path).metadata
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"corpus file {str(path)!r} is not a whole parquet file ({error}); copy it again") from error
    ranges = []
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= range_bytes or group == metadata.num_row_groups - 1:
            ranges.append((start, group + 1, size))
            start, size = group + 1, 0
    return ranges


def _wanted_kinds() -> str:
    return f"{', '.join(f'.{kind}' for kind in KINDS)} files, plain or compressed ({', '.join(COMPRESSED_SUFFIXES)})"
