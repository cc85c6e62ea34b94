"""Packed checkpoints that this package ships, by name: ``bitbert/checkpoints/NAME``; ``checkpoints/`` in a checkout."""

from pathlib import Path

from bitbert.errors import UserError, did_you_mean

_PREFIX = "bitbert-"
_PACKAGE = Path(__file__).resolve().parent


def _shipped_folder(package: Path) -> Path:
    """Where an installed package has its checkpoints, or the checkout that an editable install leads to.

    The installed one first: another package may leave a pyproject.toml beside ours.
    """
    inside = package / "checkpoints"
    is_checkout = not inside.is_dir() and (package.parent / "pyproject.toml").is_file()
    return package.parent / "checkpoints" if is_checkout else inside


FOLDER = _shipped_folder(_PACKAGE)


def released_names() -> list[str]:
    """Names of the checkpoints that this version ships."""
    return sorted(path.parent.name for path in FOLDER.glob("*/SHA256SUMS"))


def find_model(name: str | Path) -> Path:
    """The folder ``name`` where there is one, else that of the released checkpoint of this name.

    Any other name comes back as a path, for the caller to judge: it may be a Hugging Face id.

    Raises:
        UserError: ``name`` begins as released names do and is none of them.
    """
    path = Path(name)
    if path.exists() or len(path.parts) != 1:
        return path
    if path.name in released_names():
        return FOLDER / path.name
    if path.name.startswith(_PREFIX):
        raise UserError(
            f"model {path.name!r} is neither a folder nor a released checkpoint; {_what_is_there(path.name)}"
        )
    return path


def _what_is_there(name: str) -> str:
    names = released_names()
    if not names:
        return "this version ships none, give the folder of a model"
    return f"this version ships {', '.join(names)}{did_you_mean(name, names)}"
