"""Independent steps on worker processes: started by spawn, ended with their parent, one clear error for the user."""

import errno
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from bitbert.errors import UserError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def usable_cores() -> int:
    """Cores that this process may run on: Slurm and taskset narrow them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_steps(
    function: Callable[..., Any], steps: Sequence[tuple[Any, ...]], *, workers: int, work_folder: Path
) -> Iterator[Any]:
    """Call ``function`` with the arguments of each step and yield the results as they come.

    With one worker or one step nothing is spawned. ``function`` and its arguments must pickle.

    Raises:
        UserError: a step's own, a full disk, or a worker that the system killed. Steps that ended stay done.
    """
    if workers == 1 or len(steps) <= 1:
        for step in steps:
            yield _guarded(function, work_folder, *step)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(steps)), mp_context=context, initializer=_start_worker) as pool:
        pending = {pool.submit(_guarded, function, work_folder, *step) for step in steps}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely for memory; use fewer --workers, or a smaller rows_per_shard or "
                "clean.max_chars, and run the same command again: what is finished is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _guarded(function: Callable[..., Any], work_folder: Path, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise UserError(
            f"no space left for {str(error.filename or work_folder)!r} ({error.strerror}); free some, or choose another output=..., "
            "and run the same command again: what is finished is kept"
        ) from error


def _start_worker() -> None:
    """One tokenizer thread a process, and no life after the parent's: a killed build leaves no worker behind."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
