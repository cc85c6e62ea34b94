"""The C libraries that this package builds: found beside its modules, loaded through ctypes."""

import ctypes
from pathlib import Path

from bitbert.errors import UserError


def load_shared_library(path: Path, *, version_function: str, version: int, otherwise: str) -> ctypes.CDLL | None:
    """The library, or None where it was not built.

    Args:
        version_function: of the library, without arguments; it returns the version of its interface as int.
        version: of the interface that the caller declares.
        otherwise: how to do without the library, for the message when it cannot be loaded.

    Raises:
        UserError: the library cannot be loaded, or is of another version than this package.
    """
    if not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"native library {str(path)!r} cannot be loaded ({error}); install bitbert again, or {otherwise}"
        ) from error
    found = getattr(library, version_function)()
    if found != version:
        raise UserError(f"native library {str(path)!r} has interface {found}, wanted {version}; install bitbert again")
    return library
