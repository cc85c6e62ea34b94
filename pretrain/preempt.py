"""Preemption: a scheduler's signal, or a file, becomes a checkpoint within a step and an exit code to requeue on."""

import signal
from pathlib import Path
from types import FrameType

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: the run is not finished, start it again."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """A flag that SIGTERM and SIGUSR1 raise. The handler does nothing else: the loop reads the flag once a step.

    A stop file says the same without a signal, for a batch script whose signal would also hit the processes that a
    rank started; and for a person.

    Ranks may get the signal at different moments, or only some of them; the loop agrees over all ranks before it acts.
    """

    def __init__(self, stop_file: Path | None = None) -> None:
        self._signalled = False
        self._stop_file = stop_file
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop, by a signal or by the file."""
        return self._signalled or (self._stop_file is not None and self._stop_file.exists())

    def acknowledge(self) -> None:
        """Remove the stop file, so that the next start goes on; call it after the checkpoint."""
        if self._stop_file is not None:
            self._stop_file.unlink(missing_ok=True)


class PreemptedError(Exception):
    """The run was asked to stop; its checkpoint is written."""
