"""A benchmark that goes on when its terminal is closed."""

import subprocess
import sys
from pathlib import Path


def detach(script: str, folder: Path) -> None:
    """Start ``script`` anew in the background with this process's arguments; it writes ``folder/log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, script, *(word for word in sys.argv[1:] if word != "--detach")]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    print(f"process {process.pid}, log {folder / 'log.txt'}; stop it and its children: kill -- -{process.pid}")
