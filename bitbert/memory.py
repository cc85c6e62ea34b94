"""Huge pages for the tensors of a CPU run."""

import os

VARIABLE = "THP_MEM_ALLOC_ENABLE"
"""torch reads it when it allocates its first tensor: 1 asks the kernel for pages of 2 MiB behind large tensors."""


def use_huge_pages() -> None:
    """Ask torch for huge pages, unless the environment says otherwise; of use only before torch is imported.

    The C library maps what is larger than 32 MiB anew each time, and the kernel then clears 4 KiB after 4 KiB of it:
    an operation that fills 48 MiB spends more time there than on its own work. The layers of BERT-base make many.
    """
    os.environ.setdefault(VARIABLE, "1")
