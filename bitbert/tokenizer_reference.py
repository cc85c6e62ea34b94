"""A tokenizer by reference: released checkpoints name a vocabulary of others by its hash instead of carrying it.

``tokenizer.reference.json`` holds ``sources``, names to try in turn (``package://DIST/PATH`` or a Hugging Face id), and
``fingerprint``, the hash of everything that decides the ids. What a source holds is used only if its hash is that one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bitbert.errors import UserError
from bitbert.files import read_json, write_json_atomically
from bitbert.resources import is_package_resource

REFERENCE_FILE = "tokenizer.reference.json"


class Fingerprinted(Protocol):
    """What a reference needs to know of a tokenizer."""

    @property
    def fingerprint(self) -> str: ...


TokenizerT = TypeVar("TokenizerT", bound=Fingerprinted)


def save_reference(folder: Path, tokenizer: TokenizerT, sources: list[str], load: Callable[[str], TokenizerT]) -> None:
    """Write the reference into ``folder``.

    Args:
        load: opens a source, as ``bitbert.tokenizer.load_tokenizer`` does.

    Raises:
        UserError: a source is no portable name, or none holds this tokenizer.
    """
    data = {"sources": sources, "fingerprint": tokenizer.fingerprint}
    _find(data, f"tokenizer sources {', '.join(sources)}", load)
    write_json_atomically(folder / REFERENCE_FILE, data)


def read_reference(folder: Path, load: Callable[[str], TokenizerT]) -> TokenizerT:
    """The tokenizer that the reference in ``folder`` names; ``load`` opens a source.

    Raises:
        UserError: the file is damaged, or no source holds this tokenizer.
    """
    path = folder / REFERENCE_FILE
    return _find(read_json(path, "tokenizer reference"), str(path), load)


def _find(data: Any, origin: str, load: Callable[[str], TokenizerT]) -> TokenizerT:
    """The first source's tokenizer that has the wanted fingerprint; ``origin`` names the reference in errors."""
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(sources, list) or not sources or not isinstance(data.get("fingerprint"), str):
        raise UserError(f"{origin}: {data!r:.80}, wanted sources and fingerprint; the file is damaged")
    reasons = []
    for source in sources:
        if not _is_portable(source):
            raise UserError(f"{origin}: source {source!r}, wanted package://DIST/PATH or a Hugging Face id")
        try:
            found = load(source)
        except UserError as error:
            reasons.append(str(error))
            continue
        if found.fingerprint == data["fingerprint"]:
            return found
        reasons.append(
            f"{source} has fingerprint {found.fingerprint[:12]}, the model was trained with {data['fingerprint'][:12]}"
        )
    raise UserError(f"the tokenizer is not part of the checkpoint, and not found: {'; '.join(reasons)}")


def _is_portable(source: Any) -> bool:
    """Whether a name means the same on every machine: no path into somebody's folders."""
    if not isinstance(source, str) or ".." in source:
        return False
    return is_package_resource(source) or (source.count("/") == 1 and source[0] not in "./~")
