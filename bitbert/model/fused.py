"""The 1-bit operations of a training step on the native kernels: what binarize.py computes, in fewer passes.

Each function here replaces a composition of torch operations that stays the definition, and is tested against it.
Forward products of codes are integers, exact in int8; backward products have one operand of codes and one of
gradients, in float32 or, under autocast, in bfloat16. Kept for the backward pass are codes and windows of one byte.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bitbert.model.kernels import Codes, Kernels, Scores, kernels_for, product_dtype
from bitbert.model.precision import products_as_they_are

EXACT_IN_BFLOAT16 = 256
"""bfloat16 holds every integer up to this: sums that may be larger are taken in float32."""
_SIGNS = Codes.of("signed", 1)


class _BinaryLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        x: Tensor,
        shift: Tensor,
        step: Tensor,
        weight: Tensor,
        center: Tensor | None,
        scale: Tensor,
        bias: Tensor,
        kind: Codes,
        after: str,
    ) -> Tensor:
        x, shift, weight = x.contiguous(), shift.contiguous(), weight.contiguous()
        codes, window = kernels.binarize(x, shift, step.item(), kind, torch.int8, after=after)
        signs = weight.to(torch.int8) if center is None else kernels.signs(weight, center.item())
        # dL/dW = dL/d(s sign(W - e)) for a latent weight; codes have the scale in their gradient.
        divisor = torch.ones_like(step) if center is None else scale
        codes = codes.view(-1, x.shape[-1])
        y = kernels.product(codes, signs, scale * step, bias)
        values = x if after != "identity" or kind.needs_values else None
        ctx.save_for_backward(codes, window, signs, scale, divisor, step, shift, values)
        ctx.kernels, ctx.kind, ctx.after, ctx.dtype = kernels, kind, after, product_dtype(x)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        codes, window, signs, scale, divisor, step, shift, x = ctx.saved_tensors
        kernels, dtype = ctx.kernels, ctx.dtype
        gradient = gradient.contiguous()
        upstream, dbias = kernels.upstream(gradient.view(-1, gradient.shape[-1]), scale, dtype)
        with products_as_they_are(gradient.device):
            dcodes = (upstream @ signs.to(dtype)).view(window.shape)
            correlation = _correlate(kernels, upstream, codes.to(dtype))
        dx, dshift, dstep = kernels.binarize_backward(
            dcodes, window, ctx.kind, x=x, shift=shift, step=step.item(), factor=1.0, after=ctx.after
        )
        dweight, dstep_of_product = kernels.weight_gradient(correlation, signs, divisor, step.item())
        dstep += dstep_of_product
        return None, dx, dshift, dstep, dweight, None, None, dbias, None, None


def _correlate(kernels: Kernels, upstream: Tensor, codes: Tensor) -> Tensor:
    """upstream (rows, out)^T @ codes (rows, in), dense.

    A bfloat16 product reads a transposed operand at half its speed: the narrower one is transposed beforehand.
    """
    width, depth = upstream.shape[1], codes.shape[1]
    if upstream.dtype != torch.bfloat16 or width == depth:
        return upstream.T @ codes
    if width < depth:
        return kernels.transpose(upstream) @ codes
    return kernels.transpose(kernels.transpose(codes) @ upstream)


def binary_linear(
    kernels: Kernels,
    x: Tensor,
    shift: Tensor,
    step: Tensor,
    weight: Tensor,
    center: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    *,
    codes: Codes,
    after: str = "identity",
) -> Tensor:
    """y = s * a * (codes(f(x) + m) @ W^T) + b, as :class:`bitbert.model.linear.BinaryLinear`.

    Args:
        x: (..., in), float32.
        step: a, from :func:`bitbert.model.binarize.step_size`, shape (1,).
        weight: latent, which becomes sign(weight - e), or codes.
        center: e of a latent weight, one element; None for codes.
        scale: s, (1,) or (out,); neither has a gradient.
        codes: of the activations, all within int8.
        after: f, ``"identity"``, ``"gelu"`` of :mod:`bitbert.model.layers`, or ``"relu"``; f(x) is never stored.
    """
    return _BinaryLinear.apply(kernels, x, shift, step, weight, center, scale, bias, codes, after)


class _ActivationCodes(Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, step: Tensor, kind: Codes, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        codes, window = kernels.binarize(x, None, step.item(), kind, dtype)
        ctx.save_for_backward(window, step, x if kind.needs_values else None)
        ctx.kernels, ctx.kind = kernels, kind
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        window, step, x = ctx.saved_tensors
        step = step.item()
        dx, _, dstep = ctx.kernels.binarize_backward(
            gradient.contiguous(), window, ctx.kind, x=x, shift=None, step=step, factor=1 / step
        )
        return None, dx, dstep, None, None


def activation_codes(kernels: Kernels, x: Tensor, step: Tensor, codes: Codes, dtype: torch.dtype) -> Tensor:
    """The codes of a :class:`bitbert.model.linear.Binarizer` in ``dtype``, the operand type of the next product."""
    return _ActivationCodes.apply(kernels, x, step, codes, dtype)


class _Attend(Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        queries: Tensor,
        keys: Tensor,
        factor: Tensor,
        residual: Tensor | None,
        bias: Tensor | None,
        step: Tensor,
        codes: Codes,
        inverse_root: float,
        random: Tensor | None,
        limit: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.fixed = {
            "codes": codes,
            "factor": factor.item(),
            "inverse_root": inverse_root,
            "step": step.item(),
            "residual": None if residual is None else residual.float().contiguous(),
            "bias": None if bias is None else bias.float().expand(queries.shape[0], 1, 1, keys.shape[-2]).contiguous(),
            "random": random,
            "limit": limit,
        }
        with products_as_they_are(queries.device):
            scores = queries @ keys.transpose(-1, -2)
        attended, weighed, gate = kernels.attend(Scores(scores, **ctx.fixed))
        ctx.save_for_backward(queries, keys, weighed, gate)
        ctx.kernels, ctx.residual_dtype = kernels, None if residual is None else residual.dtype
        ctx.fixed |= {"random": None, "bias": None}
        ctx.mark_non_differentiable(weighed)
        ctx.set_materialize_grads(False)  # not that of what has none
        return attended, weighed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
        queries, keys, weighed, gate = ctx.saved_tensors
        gradient = gradient.contiguous()
        dscores, dresidual, dstep = ctx.kernels.attend_backward(Scores(gradient, **ctx.fixed), gradient, weighed, gate)
        with products_as_they_are(gradient.device):
            dqueries, dkeys = dscores @ keys, dscores.transpose(-1, -2) @ queries
        # sum(dscores * scores) without the scores: the product's gradient once more against its own operand.
        dfactor = (dqueries.float() * queries).sum().reshape(1) / ctx.fixed["factor"]
        if dresidual is not None:
            dresidual = dresidual.to(ctx.residual_dtype)
        return None, dqueries, dkeys, dfactor, dresidual, None, dstep, None, None, None, None


def attend(
    kernels: Kernels,
    queries: Tensor,
    keys: Tensor,
    factor: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    step: Tensor,
    *,
    codes: Codes,
    inverse_root: float,
    random: Tensor | None,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Attended codes, of softmax((Q K^T * factor + E) * inverse_root + bias), or of the scores in Bi-Attention.

    Args:
        queries, keys: codes (batch, heads, positions, head_size) of one type, float32 or bfloat16.
        factor: (1,), the product of their steps.
        residual: E, (batch, 1 or heads, positions, positions), or None.
        bias: broadcastable to (batch, 1, 1, positions), or None.
        step: (1,).
        codes: of any kind that is not signed; ``bool`` and ``strict_bool`` go without softmax.
        random, limit: from :func:`bitbert.model.dropout.draw`; None and 0 for no dropout. Dropped codes are 0.

    Returns:
        those codes in the type of queries and keys, (batch, heads, positions, positions), and what became codes,
        which has no gradient.
    """
    fixed = (codes, inverse_root, random, limit)
    return _Attend.apply(kernels, queries, keys, factor, residual, bias, step, *fixed)


class _Gelu(Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return kernels.gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, ctx.kernels.gelu_backward(gradient.contiguous(), x)


def fused_gelu(kernels: Kernels, x: Tensor) -> Tensor:
    """:func:`bitbert.model.layers.gelu`, value and gradient in a pass each."""
    return _Gelu.apply(kernels, x)


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, random: Tensor, limit: int, factor: float) -> Tensor:
        y, kept = kernels.dropout(x.contiguous(), random, limit, factor)
        ctx.save_for_backward(kept)
        ctx.kernels, ctx.factor = kernels, factor
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (kept,) = ctx.saved_tensors
        dx, _, _ = ctx.kernels.binarize_backward(
            gradient.contiguous(), kept, _SIGNS, x=None, shift=None, step=1.0, factor=ctx.factor
        )
        return None, dx, None, None, None


def fused_dropout(kernels: Kernels, x: Tensor, random: Tensor, limit: int, factor: float) -> Tensor:
    """x * factor where random >= limit, else 0."""
    return _Dropout.apply(kernels, x, random, limit, factor)


class _Squares(Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
        ours, theirs = (x.contiguous().view(-1, x.shape[-1]) for x in (a, b))
        weights = weights.contiguous().view(-1)
        ctx.save_for_backward(ours, theirs, weights)
        ctx.kernels, ctx.shape = kernels, a.shape
        return kernels.squares(ours, theirs, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        a, b, weights = ctx.saved_tensors
        return None, ctx.kernels.squares_backward(gradient.item(), a, b, weights).view(ctx.shape), None, None


def weighted_squares(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * (a - b)^2, a scalar; a, b (..., width), weights (..., 1). Gradients flow to ``a`` alone."""
    kernels = kernels_for(a, b, weights)
    if kernels is None:
        return ((a - b.detach()).square() * weights.detach()).sum()
    return _Squares.apply(kernels, a, b, weights)
