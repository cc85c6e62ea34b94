"""The one exception for mistakes a user can mend, and how the command-line doors report it."""

import errno
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import NoReturn

EXIT_USER_ERROR = 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk is full."""
_NO_WAY_IN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


class UserError(Exception):
    """Bad input: the message says the value got, the value wanted and what to do, on one line."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string."""
    matches = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def require_packages(room: str, *packages: str) -> None:
    """Say in a sentence what a base install lacks, where the first missing import would only name a module.

    Raises:
        ImportError: one of ``packages`` is not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"{room} needs {', '.join(missing)}; install the training side: pip install 'bitbert[train]'")


def fail(message: str) -> NoReturn:
    """Print ``message`` as one line on stderr and leave with the exit code of a user's mistake."""
    one_line = " ".join(message.split())
    print(f"error: {one_line}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_USER_ERROR)


def run_door(door: Callable[[], object]) -> None:
    """Run a command-line door; a mistake of the user's becomes one line on stderr and exit code 2.

    That is a :class:`UserError`, a full disk, and a path that cannot be used: no permission, a file where a folder was
    wanted or the other way round.
    """
    try:
        door()
    except UserError as error:
        fail(str(error))
    except OSError as error:
        if error.errno in NO_ROOM:
            fail(f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space and start again")
        if error.errno in _NO_WAY_IN and error.filename is not None:
            fail(f"cannot use {str(error.filename)!r}: {error.strerror}; give another path, or mend its permissions")
        raise
