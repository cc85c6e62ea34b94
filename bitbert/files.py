"""Files that are never half-written: temporary name, flush, rename. And the hashes that make them trusted."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitbert.errors import UserError

_MIB = 2**20


class NoSpaceError(UserError):
    """The disk is too full for what is about to be written; nothing was."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, so that they are still there after a power cut."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        fsync_path(folder.parent)


def require_free_space(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse to begin a write that the disk cannot hold.

    Raises:
        NoSpaceError: ``folder``'s file system has fewer than ``num_bytes`` free.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise NoSpaceError(
            f"{what} needs {num_bytes / _MIB:,.1f} MiB, the disk of {str(folder)!r} has {free / _MIB:,.1f} MiB free; "
            "free some space"
        )


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then flush it and rename it into place."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write(temporary)
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; readers see the old file or the new one, never a part."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a closing newline, atomically."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def publish_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well it becomes ``path`` in one rename.

    A block that raises leaves nothing behind. ``replace`` allows ``path`` to exist already: the old folder is
    moved aside, the new one renamed into place, and only then is the old one deleted. A kill between the two renames
    leaves the old one under its other name: :func:`finish_publishing` puts it back.

    Raises:
        UserError: ``path`` exists and ``replace`` is false.
    """
    if path.exists() and not replace:
        raise UserError(f"output {str(path)!r} already exists; choose another path or remove it first")
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(0o644)  # some writers make files that only their owner can read
            fsync_path(file)
        fsync_path(temporary)
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists():
            # In a container a process often has the number of the one before it, and finds what a kill left of that.
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
        fsync_path(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish_publishing(parent: Path, pattern: str) -> list[str]:
    """Clear away what a kill during :func:`publish_folder` left of folders ``pattern``; returns a line for each.

    A folder that was moved aside and not yet replaced goes back to its place. No other process may be publishing.
    """
    found = []
    for leftover in sorted(parent.glob(f".{pattern}.*-*")) if parent.is_dir() else []:
        name, _, kind = leftover.name.removeprefix(".").rpartition(".")
        if kind.startswith("old-") and not (parent / name).exists():
            os.replace(leftover, parent / name)
            fsync_path(parent)
            found.append(f"put {name} back, whose replacement was not finished")
        else:
            shutil.rmtree(leftover, ignore_errors=True)
            found.append(f"removed unfinished {leftover.name}")
    return found


def remove_folder(path: Path) -> None:
    """Delete a folder that is in use until it is gone: renamed first, so that a kill leaves no half of it in place."""
    doomed = path.with_name(f".{path.name}.gone-{os.getpid()}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file; ``what`` names it in the error message (e.g. ``"shard manifest"``)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{what} {str(path)!r} does not exist") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, more digits or levels than Python reads
        raise UserError(
            f"{what} {str(path)!r} is not valid JSON ({error}); the file is damaged, make or copy it again"
        ) from error


def read_json_object(path: Path, what: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """:func:`read_json` of a file that holds an object with, at least, ``keys``."""
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(
            f"{what} {str(path)!r} holds {type(found).__name__}, wanted an object; the file is damaged, "
            "make or copy it again"
        )
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(f"{what} {str(path)!r} lacks {', '.join(missing)}; the file is damaged, make or copy it again")
    return found
