"""In which number format matrix products run."""

import torch

from bitbert.config import Precision


def products_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Context, or decorator, in which products with floats run in ``precision``.

    Products of bits are exact integers in both, and what surrounds products stays float32: a student's forward pass
    takes the same binary decisions in bf16, but for its float estimators; its gradients are rounded.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
