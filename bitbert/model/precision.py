"""In which number format matrix products run."""

from contextlib import AbstractContextManager, nullcontext

import torch

from bitbert.config import Precision


def products_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Context, or decorator, in which products with floats run in ``precision``.

    What surrounds products, with the estimators of the scores, stays float32. On the native kernels products of codes
    are exact integers in both: what is rounded in a student's forward pass is its value estimator alone. torch's own
    product, on a GPU or without kernels, gives a bfloat16 and so rounds sums above 256. Gradients are rounded in both.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def products_as_they_are(device: torch.device) -> AbstractContextManager[object]:
    """Context in which products run in the type of their operands, whatever autocast surrounds it."""
    if not torch.amp.is_autocast_available(device.type):  # torch's "meta", on which models are counted
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
