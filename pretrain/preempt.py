"""Preemption: a scheduler's signal becomes a checkpoint within a step and an exit code to requeue on."""

import signal
from types import FrameType

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: the run is not finished, start it again."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """A flag that SIGTERM and SIGUSR1 raise. The handler does nothing else: the loop reads the flag once a step.

    Ranks may get the signal at different moments, or only some of them; the loop agrees over all ranks before it acts.
    """

    def __init__(self) -> None:
        self.requested = False
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class PreemptedError(Exception):
    """The run was asked to stop; its checkpoint is written."""
