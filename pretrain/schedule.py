"""Learning rate at a step, as a closed form: no state, the same on any number of ranks."""


def linear_schedule(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Rate of the update number ``step`` (0-based): linear from 0 to ``peak`` over the warm-up, then linear to 0.

    rate = peak * (step + 1) / warmup                       for step < warmup
         = peak * (total - step) / (total - warmup)         after it; the last update still has a positive rate
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (total_steps - step) / max(1, total_steps - warmup_steps)
