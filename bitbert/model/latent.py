"""Latent weights for bits: what to put behind the signs of a packed model so that training can flip them.

Bits say sign(W - e) and the scale s = mean|W|, not W. Any W with these signs and this scale is the same function, but
an optimizer moves a latent weight by about its learning rate a step, so that |W| says how many steps a flip takes.
"""

import torch
from torch import Tensor, nn

from bitbert.model.linear import BinaryEmbedding, BinaryLinear

MIN_MAGNITUDE = 1e-3
"""Of the scale; keeps weights clear of the rounding of the mean that their signs are taken against."""


@torch.no_grad()
def spread_latent_weights(model: nn.Module, seed: int) -> None:
    """Replace latent weights ±s by weights of the same signs whose magnitudes are spread as in a trained model.

        W_i = sign_i c |z_i|,  z_i ~ N(0, 1) drawn from ``seed``,

    with c such that mean|W| = s in every row that has a scale of its own (else in the matrix) and sum W = 0, so that
    e = 0 and the binarized weights stay what they are. A row (or matrix) of one sign only is left as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, BinaryLinear | BinaryEmbedding):
            by_row = isinstance(module, BinaryEmbedding) or module.weight_scale == "channel"
            groups = module.weight if by_row else module.weight.reshape(1, -1)
            module.weight.copy_(_spread(groups, generator).reshape(module.weight.shape))


def _spread(weight: Tensor, generator: torch.Generator) -> Tensor:
    """(groups, n) of ±s -> the same signs, half-normal magnitudes, per group mean|W| = s and mean W = 0."""
    scale = weight.abs().mean(dim=1, keepdim=True)
    magnitude = torch.randn(weight.shape, generator=generator).abs_().clamp_(min=MIN_MAGNITUDE)
    negative = weight < 0
    half = scale * weight.shape[1] / 2  # what the magnitudes of either sign must add up to
    below = (magnitude * negative).sum(dim=1, keepdim=True)
    above = magnitude.sum(dim=1, keepdim=True) - below
    spread = torch.where(negative, -magnitude * half / below, magnitude * half / above)
    return torch.where((below > 0) & (above > 0), spread, weight)
