"""Independent steps on worker processes: started by spawn, ended with their parent, one clear error for the user."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from bitbert.errors import NO_ROOM, UserError


def usable_cores() -> int:
    """Cores that this process may run on: Slurm and taskset narrow them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """Runs steps of a build; a context manager. Processes start with the first steps that need them.

    Args:
        workers: most processes at a time; with 1 nothing is spawned.
        work_folder: named in the message of a full disk.
    """

    def __init__(self, workers: int, work_folder: Path) -> None:
        self._workers = workers
        self._work_folder = work_folder
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[..., Any], steps: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Call ``function`` with the arguments of each step and yield the results as they come.

        ``function`` and its arguments must pickle.

        Raises:
            UserError: a step's own, a full disk, or a worker that the system killed. Steps that ended stay done.
        """
        if self._workers == 1 or len(steps) <= 1:
            for step in steps:
                yield _guarded(function, self._work_folder, *step)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start_worker)
        try:
            pending = {self._pool.submit(_guarded, function, self._work_folder, *step) for step in steps}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely for memory; use fewer --workers, or a smaller "
                "rows_per_shard or clean.max_chars, and run the same command again: what is finished is kept"
            ) from error


def _guarded(function: Callable[..., Any], work_folder: Path, *arguments: Any) -> Any:
    with full_disk_explained(work_folder):
        return function(*arguments)


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn a full disk inside the block into a :class:`UserError` that names the file, or else ``folder``."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"no space left for {str(error.filename or folder)!r} ({error.strerror}); "
            "free some, or choose another output=..., and run the same command again: what is finished is kept"
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
