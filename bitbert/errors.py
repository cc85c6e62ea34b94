"""The one exception for mistakes a user can mend, and how the command-line doors report it."""

import errno
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import NoReturn

EXIT_USER_ERROR = 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    """Run a command-line door; a :class:`UserError`, or a full disk, becomes one line on stderr and exit code 2."""
    try:
        door()
    except UserError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        fail(f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space and start again")
