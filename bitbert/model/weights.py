"""The weight binarizers of the published methods, by the name that ``weight_binarizer`` gives them.

=============  =====================================  ===========================================================
name           binary weights                         gradient that reaches the latent weight
=============  =====================================  ===========================================================
mean_centered  s sign(W - mean W)                     identity (BiT, arXiv 2205.13016; BiPFT, arXiv 2312.08937)
row_centered   s_r sign(W_r - mean W_r)               1[-1 <= W_c <= 1], through the centring (BiBERT, 2203.06390)
uncentered     s sign(W)                              identity (BinaryBERT, arXiv 2012.15701)
ternary        t 1[|W| > 0.7 mean|W|] sign(W)         identity (TWN; TernaryBERT, arXiv 2009.12812)
=============  =====================================  ===========================================================

s = mean|W| of the uncentred weights, t = the mean of those |W| that are kept; over the matrix, or over each output row
with ``weight_scale="channel"``. Rows of the word table have scales of their own in every method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bitbert.model.binarize import binarize_embedding_rows, binarize_weight, sign, weight_statistics

TERNARY_THRESHOLD = 0.7
"""Ternary weights: what is below this times the mean magnitude becomes 0 (TWN's rule)."""


class _RowCenteredSigns(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        center = weight.mean(dim=-1, keepdim=True)
        ctx.save_for_backward((weight - center).abs() <= 1, scale)
        return sign(weight, center)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        window, scale = ctx.saved_tensors
        centered = gradient / scale * window
        return centered - centered.mean(dim=-1, keepdim=True), None


class _Codes(Function):
    """Given codes forward; the gradient of code * scale passes to the weight as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return codes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradient / scale, None, None


def _row_centered(weight: Tensor, weight_scale: str) -> tuple[Tensor, Tensor]:
    _, scale = weight_statistics(weight, weight_scale)
    return _RowCenteredSigns.apply(weight, scale), scale


def _uncentered(weight: Tensor, weight_scale: str) -> tuple[Tensor, Tensor]:
    _, scale = weight_statistics(weight, weight_scale)
    return _Codes.apply(weight, sign(weight.detach()), scale), scale


def _ternary(weight: Tensor, weight_scale: str) -> tuple[Tensor, Tensor]:
    codes, scale = ternary_codes(weight.detach(), weight_scale)
    return _Codes.apply(weight, codes, scale), scale


def ternary_codes(weight: Tensor, weight_scale: str) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, 1}, shape (..., in), and the scale t, shape (1, 1) or (..., 1), without gradient."""
    magnitude = weight.abs()
    dims: dict[str, Any] = {"dim": -1, "keepdim": True} if weight_scale == "channel" else {}
    kept = magnitude > TERNARY_THRESHOLD * magnitude.mean(**dims)
    count = kept.sum(**dims).clamp(min=1)
    scale = ((magnitude * kept).sum(**dims) / count).clamp(min=torch.finfo(weight.dtype).tiny)
    return sign(weight) * kept, scale if dims else scale.reshape(1, 1)


@dataclass(frozen=True)
class WeightBinarizer:
    """How a method makes codes of latent weights.

    Attributes:
        linear: (weight (out, in), weight_scale) -> codes (out, in), scale (1,) or (out,).
        rows: (rows (..., hidden), mean of the whole table) -> binarized rows of the word table, scale included.
        center: latent weight (out, in) -> what its signs are relative to; None where it has more levels than two.
    """

    linear: Callable[[Tensor, str], tuple[Tensor, Tensor]]
    rows: Callable[[Tensor, Tensor], Tensor]
    center: Callable[[Tensor], Tensor] | None


def _flat(codes_and_scale: Callable[[Tensor, str], tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def linear(weight: Tensor, weight_scale: str) -> tuple[Tensor, Tensor]:
        codes, scale = codes_and_scale(weight, weight_scale)
        return codes, scale.flatten()

    return linear


def _rows(codes_and_scale: Callable[[Tensor, str], tuple[Tensor, Tensor]]) -> Callable[[Tensor, Tensor], Tensor]:
    def rows(weight: Tensor, _: Tensor) -> Tensor:
        flat = weight.reshape(-1, weight.shape[-1])
        codes, scale = codes_and_scale(flat, "channel")
        return (codes * scale).reshape(weight.shape)

    return rows


WEIGHT_BINARIZERS = {
    "mean_centered": WeightBinarizer(binarize_weight, binarize_embedding_rows, lambda weight: weight.mean()),
    "row_centered": WeightBinarizer(
        _flat(_row_centered), _rows(_row_centered), lambda weight: weight.mean(dim=-1, keepdim=True)
    ),
    "uncentered": WeightBinarizer(_flat(_uncentered), _rows(_uncentered), lambda weight: weight.new_zeros(())),
    "ternary": WeightBinarizer(_flat(_ternary), _rows(_ternary), None),
}
