"""What a CPU run asks of the C library about the memory of its tensors."""

import ctypes
import os

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch reads it when it allocates its first tensor: 1 asks the kernel for pages of 2 MiB behind large tensors."""
MAX_MAPPED = "MALLOC_MMAP_MAX_"
"""glibc reads it at the start of a process: how many blocks it maps one by one. Given, it decides."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def prepare_memory() -> None:
    """Huge pages behind large tensors, and freed memory kept for the next ones; before torch is imported.

    The C library maps what is larger than 32 MiB anew each time and gives it back when it is freed. The kernel then
    clears page after page of it: of a training step of BERT-base a third was that. So nothing is mapped by itself and
    nothing is given back before :func:`give_back_memory`; a step's tensors have the sizes of the step before. (In some
    heaps the first tensors of a size, up to 32, still take new memory: glibc's thread cache holds a few bytes
    beside each, of which the next one, aligned, has need.)
    Either part is left alone where the environment says something about it, the second where there is no glibc.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and MAX_MAPPED not in os.environ:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


CALLS_BETWEEN_GIVING_BACK = 100
"""Micro-batches of which one pays its page faults anew, at most a third of its time."""


def give_back_memory_now_and_then(num_calls: int) -> None:
    """For a training loop: :func:`give_back_memory` at every hundredth micro-batch."""
    if num_calls % CALLS_BETWEEN_GIVING_BACK == 0:
        give_back_memory()


def give_back_memory() -> None:
    """Give what is freed back to the system.

    Tensors whose size changes from step to step, as the logits' does with the number of masked tokens, leave gaps that
    no later one fits, and what is kept grows. The step after a call pays for its pages anew.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
