"""When a loss or a gradient is not finite: skip the update, and after too many in a row stop or roll back.

All of it is decided from numbers that every rank holds alike, and all that it remembers is in the checkpoint's state:
a run that was killed at any point goes on as one that was not.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bitbert.errors import UserError

from .config import NonFiniteSection

_LARGEST_SQUARE = 3e38  # beyond it the norm overflows float32, where DeepSpeed computes its own


class NonFiniteError(UserError):
    """Too many updates in a row would have been made of NaN or infinity; raised on all ranks, none has updated."""


@dataclass
class NonFiniteGuard:
    """Counts of skipped updates, and which batches a rollback passed over.

    Attributes:
        in_a_row: updates skipped since the last one that was made.
        skipped: updates skipped in all.
        passed_over: (step, batches) pairs: from ``step`` on the data is ``batches`` global batches further ahead.
    """

    config: NonFiniteSection
    in_a_row: int = 0
    skipped: int = 0
    passed_over: list[list[int]] = field(default_factory=list)

    def data_step(self, step: int) -> int:
        """Which global batch the update number ``step`` trains on."""
        return step + sum(batches for since, batches in self.passed_over if since <= step)

    def examine(self, losses: Mapping[str, float], gradient_squares: float) -> str | None:
        """What is wrong with a step, or None, before its update.

        Args:
            losses: loss terms of the global batch.
            gradient_squares: square of the global gradient norm.
        """
        for name, value in losses.items():
            if not math.isfinite(value):
                return f"loss term {name} is {value}"
        if not gradient_squares < _LARGEST_SQUARE:
            return f"the gradient norm is {math.sqrt(gradient_squares) if gradient_squares >= 0 else gradient_squares}"
        return None

    def count(self, problem: str | None) -> None:
        """Remember how a step went."""
        self.in_a_row = self.in_a_row + 1 if problem else 0
        self.skipped += problem is not None

    @property
    def exhausted(self) -> bool:
        """Whether the run must stop or roll back."""
        return self.in_a_row >= self.config.patience

    @property
    def may_roll_back(self) -> bool:
        return self.config.action == "rollback" and len(self.passed_over) < self.config.max_rollbacks

    def roll_back(self, failed: int, target: int) -> None:
        """Go on from step ``target`` with the batches after those of the steps ``target`` ... ``failed - 1``."""
        self.in_a_row = 0
        self.passed_over.append([target, failed - target])

    def refusal(self, step: int, problem: str, checkpoints: object) -> NonFiniteError:
        """The error to stop with after the update number ``step`` was skipped."""
        if self.config.action == "rollback":
            times = f"rolled back {len(self.passed_over)} times already"
            reason = "there is no checkpoint to go back to" if self.may_roll_back else times
            advice = f"{reason}; lower optimizer.learning_rate in a new run"
        else:
            advice = (
                "lower optimizer.learning_rate or set optimizer.gradient_clipping in a new run, or start again with "
                "non_finite.action=rollback to pass over the batches since the last checkpoint in "
                f"{str(checkpoints)!r}"
            )
        return NonFiniteError(f"step {step}: {problem}, {self.in_a_row} in a row, no update was made; {advice}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "config"}


@dataclass
class SaveFailures:
    """Checkpoints that could not be written: training goes on without them, but not for ever.

    A full disk is often emptied by the person who filled it; the hours until then need not be lost.
    """

    patience: int
    in_a_row: int = 0

    def count(self, problem: str | None, *, must_succeed: bool) -> str | None:
        """Remember how a save went; returns what to log.

        Raises:
            UserError: the last checkpoint of a process, or ``patience`` in a row.
        """
        if problem is None:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        if must_succeed or self.in_a_row >= self.patience:
            raise UserError(
                f"{problem}; the older checkpoints are intact, start the same command again to go on from the newest"
            )
        return (
            f"{problem}; the older checkpoints are intact and training goes on "
            f"({self.in_a_row} failed in a row, {self.patience} stop the run)"
        )
