"""Activations of 2, 4 or 8 bits: the elastic quantizer that the 1-bit binarizers are the end of.

x -> step * clip(round(x / step), lowest, highest), with LSQ's gradients (BiT, arXiv 2205.13016; LSQ, arXiv
1902.08153). As with 1 bit, functions here return the bare integer codes and the caller multiplies by the step once.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from bitbert.model.binarize import MIN_STEP

ACTIVATION_BITS = (1, 2, 4, 8)


def check_activation_bits(bits: int) -> None:
    """Raises:
    ValueError: there is no quantizer of this many bits.
    """
    if bits not in ACTIVATION_BITS:
        raise ValueError(f"activation_bits {bits!r}, wanted one of {', '.join(map(str, ACTIVATION_BITS))}")


def level_range(kind: str, bits: int) -> tuple[int, int]:
    """(lowest, highest) code of a quantizer.

    ``signed``: -2**(bits - 1) to 2**(bits - 1) - 1; ``unsigned``: 0 to 2**bits - 1. One signed bit is the exception,
    -1 and +1 without 0; ``bool`` and ``strict_bool`` have one bit.
    ``highest`` is LSQ's Q_p, which scales initial step and gradient.
    """
    if kind != "signed":
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class _Levels(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
        ratio = x / step
        ctx.save_for_backward(ratio, step)
        ctx.range = (lowest, highest)
        return ratio.round().clamp_(lowest, highest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, step = ctx.saved_tensors
        lowest, highest = ctx.range
        inside = gradient / step * ((ratio >= lowest) & (ratio <= highest))
        return inside, -(inside * ratio).sum().reshape(step.shape), None, None


def quantize_levels(x: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    """Elastic quantizer of activations, x -> step * clip(round(x / step), lowest, highest); returns the codes.

    Forward: integers in x's shape and dtype; halves round to even. Backward: dL/dx = dL/dx_q * 1[lowest <= x / step
    <= highest], and dL/dstep = sum(dL/dx_q * t), t = lowest below the window, highest above it, round(x / step) -
    x / step inside. The parts of t that are codes arise where the caller multiplies by ``step``; this function adds
    the rest. The factor 1 / sqrt(N highest) is :func:`bitbert.model.binarize.step_size`'s.
    """
    return _Levels.apply(x, step, lowest, highest)


def minmax_step(x: Tensor, highest: int) -> Tensor:
    """max|x| over the whole tensor divided by ``highest``, shape (1,), without gradient (TernaryBERT's range).

    All of x then lies within the levels and the quantizer's gradient is the identity. The range is that of the whole
    batch, so answers depend on neighbours, as published; TernaryBERT's also has an offset where x is not symmetric.
    """
    return (x.detach().abs().amax() / highest).clamp(min=MIN_STEP).reshape(1)
