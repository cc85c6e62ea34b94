"""A lost rank ends all others: within the time-out, with one line and an exit code that is not preemption's."""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bitbert.distributed import Topology, log

EXIT_LOST_RANK = 69
"""EX_UNAVAILABLE of sysexits.h: another rank is gone."""


class LostRankError(Exception):
    """Another rank died, or has not answered within the time-out."""


class Watchdog:
    """Ends the process when the ranks have agreed on nothing for ``timeout_s`` seconds.

    A dead peer breaks gloo's connections at once and the exception says so. But a peer that hangs, and any lost peer
    under NCCL, where the wait happens on the device, stop this process inside a call that cannot be interrupted from
    Python. So the watch is kept by a thread, and it ends the process without asking the main thread.
    """

    def __init__(self, topology: Topology, timeout_s: float) -> None:
        self._topology, self._timeout_s = topology, timeout_s
        self._last = time.monotonic()
        self._stopped = threading.Event()
        self._step = 0
        if topology.world_size > 1:
            threading.Thread(target=self._watch, name="lost-rank-watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """All ranks have just been heard of."""
        self._last, self._step = time.monotonic(), step

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._timeout_s / 10)):
            if time.monotonic() - self._last > self._timeout_s:
                cause = f"no answer for {self._timeout_s:g} s since step {self._step}"
                log(f"error: {lost_rank_message(self._topology, cause)}")
                os._exit(EXIT_LOST_RANK)


def lost_rank_message(topology: Topology, cause: str) -> str:
    """One line for the log of a rank that has to give up."""
    return (
        f"rank {topology.rank}: another rank is lost ({cause}); see the other ranks' logs, "
        "then start the same command again to go on from the newest checkpoint"
    )


@contextmanager
def lost_ranks_named(topology: Topology) -> Iterator[None]:
    """Turn what torch.distributed raises when a peer is gone into one sentence.

    Raises:
        LostRankError: in place of an error of the communication; other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        if topology.world_size == 1 or not is_lost_rank(error):
            raise
        raise LostRankError(lost_rank_message(topology, _first_sentence(str(error)))) from error


def _first_sentence(text: str) -> str:
    """What a library's message begins with, without the place in its source."""
    first = (text.strip().splitlines() or ["no reason given"])[0]
    return re.sub(r"^\[[^\]]*\] ", "", first).split(". ")[0]


def is_lost_rank(error: BaseException) -> bool:
    """Whether an exception of torch.distributed says that a peer is gone or late."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
