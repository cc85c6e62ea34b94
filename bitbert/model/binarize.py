"""Binarizers: real values -> signs or bits, and the straight-through gradients behind them.

A binarized value is alpha * sign(x). The functions here return the bare signs or bits and keep the scale apart:
products of ±1 are small integers, exact in float32, and are scaled once afterwards. That is what the packed
runtime computes with popcounts, so both see the same numbers and take the same binary decisions.

sign(0) = +1 everywhere. Formulas follow BiT (arXiv 2205.13016) and BiPFT (arXiv 2312.08937); with
y = (signs * alpha) the gradient that reaches ``signs`` carries a factor alpha, which each backward divides out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

MIN_STEP = 1e-5
"""Step sizes are clamped to this from below in the forward pass."""


def sign(x: Tensor, threshold: Tensor | float = 0.0) -> Tensor:
    """+1 where x >= threshold, else -1, in x's dtype. NaN gives -1.

    Comparing with a threshold gives the sign of the difference exactly, without computing the difference.
    """
    return (x >= threshold).to(x.dtype).mul_(2).sub_(1)


class _StepSize(Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor, num_elements: int) -> Tensor:
        ctx.gradient_scale = num_elements**-0.5
        return alpha.clamp(min=MIN_STEP)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.gradient_scale, None


def step_size(alpha: Tensor, num_elements: int) -> Tensor:
    """The effective step of an elastic binarizer.

    Forward: a = max(alpha, 1e-5). Backward: dL/dalpha = dL/da / sqrt(num_elements), not gated by the clamp
    (LSQ's gradient scale with Q_p = 1).

    Args:
        alpha: shape (1,).
        num_elements: elements binarized with this step in this call (batch * positions * width).
    """
    return _StepSize.apply(alpha, num_elements)


class _SignedActivation(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= step, step)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        window, step = ctx.saved_tensors
        return gradient / step * window, None


def binarize_signed(x: Tensor, step: Tensor) -> Tensor:
    """Elastic signed binarizer of activations, x -> step * sign(x); returns the signs.

    Forward: sign(x), same shape as x. Backward: dL/dx = dL/dx_b * 1[-step <= x <= step]. The step's own gradient,
    sum(dL/dx_b * sign(x)) / sqrt(N), arises where the caller multiplies by ``step``. (BiT section 3.2.)
    """
    return _SignedActivation.apply(x, step)


class _UnsignedActivation(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x, step)
        return (x > step / 2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, step = ctx.saved_tensors
        ratio = x / step
        inside = gradient / step * ((ratio >= 0) & (ratio <= 1))
        return inside, -(inside * ratio).sum().reshape(step.shape)


def binarize_unsigned(x: Tensor, step: Tensor) -> Tensor:
    """Elastic unsigned binarizer, x -> step * clip(round(x / step), 0, 1); returns the bits.

    Forward: 1[x > step / 2] (round half to even leaves exactly step / 2 at 0), same shape as x.
    Backward: dL/dx = dL/dx_b * 1[0 <= x / step <= 1], and
    dL/dstep = sum(dL/dx_b * t), t = 0 below the window, 1 above it, round(x / step) - x / step inside.
    The part round(.) of t arises where the caller multiplies by ``step``; this function adds the rest. (BiT 3.1.)
    """
    return _UnsignedActivation.apply(x, step)


class _BoolActivation(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() < step, step)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        window, step = ctx.saved_tensors
        return gradient / step * window, None


def binarize_bool(x: Tensor, step: Tensor) -> Tensor:
    """Bi-Attention's bool, 1[x >= 0]; returns the bits. Backward: dL/dx = dL/dx_b * 1[-step < x < step], step 1.

    As in BiBERT's paper (arXiv 2203.06390); its published code leaves the score 0 out: :func:`binarize_strict_bool`.
    """
    return _BoolActivation.apply(x, step)


class _StrictBoolActivation(_BoolActivation):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() < step, step)
        return (x > 0).to(x.dtype)


def binarize_strict_bool(x: Tensor, step: Tensor) -> Tensor:
    """As :func:`binarize_bool`, with 1[x > 0] as in BiBERT's published code.

    Scores of random signs are 0 in C(d, d / 2) / 2**d of the cases, 9.9 % in heads of 64.
    """
    return _StrictBoolActivation.apply(x, step)


class _WeightSigns(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return sign(weight, center)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradient / scale, None, None


def weight_statistics(weight: Tensor, weight_scale: str) -> tuple[Tensor, Tensor]:
    """Centre e = mean(W), shape (1, 1), and scale s = mean|W|, shape (1, 1) or (out, 1); s is of the uncentred W.

    Both are detached: no gradient flows through them. A matrix of zeros gets the smallest normal number as scale.
    """
    weight = weight.detach()
    center = weight.mean().reshape(1, 1)
    magnitude = weight.abs()
    scale = magnitude.mean(dim=1, keepdim=True) if weight_scale == "channel" else magnitude.mean().reshape(1, 1)
    return center, scale.clamp(min=torch.finfo(weight.dtype).tiny)


def binarize_weight(weight: Tensor, weight_scale: str) -> tuple[Tensor, Tensor]:
    """Binary weights of a linear layer, W -> s * sign(W - e).

    Args:
        weight: latent weights, shape (out, in).
        weight_scale: ``"tensor"`` (BiT, BiPFT) or ``"channel"``.

    Returns:
        signs of shape (out, in) and the scale s of shape (1,) or (out,). Backward: dL/dW = dL/dW_b, the identity,
        without window and without gradient through s or e.
    """
    center, scale = weight_statistics(weight, weight_scale)
    return _WeightSigns.apply(weight, center, scale), scale.flatten()


class _EmbeddingRows(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, center: Tensor) -> Tensor:
        return rows.abs().mean(dim=-1, keepdim=True) * sign(rows, center)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def binarize_embedding_rows(rows: Tensor, center: Tensor) -> Tensor:
    """Binary rows of the word table, W_r -> mean|W_r| * sign(W_r - e), e the mean of the whole table.

    Args:
        rows: latent rows already looked up, shape (..., hidden).
        center: e, a scalar tensor.

    Returns:
        the binarized rows, scale included. Backward: the identity.
    """
    return _EmbeddingRows.apply(rows, center)


INITIAL_STEP_FACTOR = {"signed": 2.0, "unsigned": 4.0}
"""Initial step sizes are this factor times mean|x| over the calibration batch (LSQ's rule with Q_p = 1)."""
