"""Learning rate at a step, as a closed form: no state, the same on any number of ranks and after any resume.

With the update's number s (0-based), W warm-up steps, T steps in all, peak p and floor f (a share of p):

    warm-up               p (s + 1) / W                                   s < W
    linear                p (f + (1 - f) x)       x = (T - s) / (T - W)   s >= W
    cosine                p (f + (1 - f) (1 + cos(pi (1 - x))) / 2)
    warmup-stable-decay   p until D steps before the end, then linear with x = (T - s) / D

Every schedule reaches p with the warm-up's last update. At its last update (s = T - 1) x is one step above 0, so no
update is without effect where the floor is 0.
"""

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["linear", "cosine", "warmup-stable-decay"]


def _linear(remaining: float) -> float:
    return remaining


def _cosine(remaining: float) -> float:
    return (1 + math.cos(math.pi * (1 - remaining))) / 2


# What is left of the peak, over what is left of the decay (1 at its begin, 0 one step after its end).
_DECAYS: dict[ScheduleName, Callable[[float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "warmup-stable-decay": _linear,
}


def learning_rate(
    step: int,
    *,
    schedule: ScheduleName,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int | None = None,
    floor: float = 0.0,
) -> float:
    """Rate of the update number ``step``, 0 <= step < total_steps; formulas above.

    Args:
        decay_steps: D of ``warmup-stable-decay``, at most ``total_steps - warmup_steps``; None = a tenth of all steps,
            as far as the warm-up leaves room. The other schedules decay from the warm-up to the end.
        floor: what the decay ends at, as a share of ``peak``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    decay = total_steps - warmup_steps
    if schedule == "warmup-stable-decay":
        decay = min(decay, -(-total_steps // 10) if decay_steps is None else decay_steps)
    remaining = min(1.0, (total_steps - step) / max(1, decay))
    return peak * (floor + (1 - floor) * _DECAYS[schedule](remaining))
