"""manifest.json: bytes and SHA-256 of the files beside it, so that damage is seen before they are used."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from bitbert.errors import UserError
from bitbert.files import read_json, sha256_file, write_json_atomically

MANIFEST = "manifest.json"


def write_manifest(folder: Path, hashes: Mapping[str, str]) -> None:
    """Record the files of ``folder`` whose hex SHA-256 are given."""
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in hashes.items()}
    write_json_atomically(folder / MANIFEST, entries)


def find_damage(folder: Path, names: Iterable[str]) -> str | None:
    """What is wrong with the files ``names`` or their manifest, or None."""
    try:
        manifest = read_json(folder / MANIFEST, "manifest")
    except UserError as error:
        return str(error)
    if not isinstance(manifest, dict):
        return f"{MANIFEST} is not a mapping"
    for name in names:
        path, entry = folder / name, manifest.get(name)
        if not path.is_file():
            return f"{name} is missing"
        if not isinstance(entry, dict):
            return f"{MANIFEST} does not name {name}"
        if path.stat().st_size != entry.get("bytes"):
            return f"{name} has {path.stat().st_size:,} bytes where {MANIFEST} says {entry.get('bytes')}"
        if sha256_file(path) != entry.get("sha256"):
            return f"{name} differs from its sha256"
    return None
