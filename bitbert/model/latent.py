"""Latent weights for bits: what to put behind the signs of a packed model so that training can flip them.

Bits say sign(W - e) and the scale s = mean|W|, not W. Any W with these signs and this scale is the same function, but
an optimizer moves a latent weight by about its learning rate a step, so that |W| says how many steps a flip takes.
"""

import torch
from torch import Tensor, nn

from bitbert.model.linear import BinaryEmbedding, BinaryLinear
from bitbert.model.weights import WEIGHT_BINARIZERS

MIN_MAGNITUDE = 1e-3
"""Of the scale; keeps weights clear of the rounding of the mean that their signs are taken against."""


@torch.no_grad()
def spread_latent_weights(model: nn.Module, seed: int) -> None:
    """Replace latent weights ±s by weights of the same signs whose magnitudes are spread as in a trained model.

        W_i = sign_i c |z_i|,  z_i ~ N(0, 1) drawn from ``seed``,

    with c such that mean|W| = s and sum W = 0 in every row: then every binarizer's centre is 0, of the row or of the
    matrix, and the binarized weights stay what they are. A row of one sign only is left as it is, and a matrix whose
    signs such rows would change.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, BinaryLinear | BinaryEmbedding):
            center = WEIGHT_BINARIZERS[getattr(module, "weight_binarizer", "mean_centered")].center
            assert center is not None  # packed weights have two levels
            spread = _spread(module.weight, generator)
            if torch.equal(spread >= center(spread), module.weight >= center(module.weight)):
                module.weight.copy_(spread)


def _spread(weight: Tensor, generator: torch.Generator) -> Tensor:
    """(rows, n) of ±s -> the same signs, half-normal magnitudes, per row mean|W| = s and mean W = 0."""
    scale = weight.abs().mean(dim=1, keepdim=True)
    magnitude = torch.randn(weight.shape, generator=generator).abs_().clamp_(min=MIN_MAGNITUDE)
    negative = weight < 0
    half = scale * weight.shape[1] / 2  # what the magnitudes of either sign must add up to
    below = (magnitude * negative).sum(dim=1, keepdim=True)
    above = magnitude.sum(dim=1, keepdim=True) - below
    spread = torch.where(negative, -magnitude * half / below, magnitude * half / above)
    return torch.where((below > 0) & (above > 0), spread, weight)
