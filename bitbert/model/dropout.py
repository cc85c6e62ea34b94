"""Dropout from 16-bit random numbers: four elements a draw of the generator.

torch's dropout draws a number an element, on a CPU a tenth of a 1-bit step. Which units are dropped is the same
with and without the native kernels.
"""

import torch
from torch import Tensor, nn

from bitbert.model.fused import fused_dropout
from bitbert.model.kernels import kernels_for


def draw(shape: torch.Size, device: torch.device) -> Tensor:
    """Uniform int16 of ``shape`` from torch's default generator of ``device``."""
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None)
    return words.view(torch.int16)[: shape.numel()].view(shape)


def drop_limit(probability: float) -> int:
    """An int16 is below it with ``probability``, to 2**-16; it is an int16 itself, so one number is always kept."""
    return min(round(probability * 2**16), 2**16 - 1) - 2**15


class Dropout(nn.Module):
    """Sets elements to 0 with probability ``p`` and multiplies the others by 1 / (1 - p), in training alone.

    ``p`` is rounded to 16 bits.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        random, limit = draw(x.shape, x.device), drop_limit(self.p)
        kernels = kernels_for(x)
        if kernels is not None:
            return fused_dropout(kernels, x, random, limit, 1 / (1 - self.p))
        return x * (random >= limit) * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"
