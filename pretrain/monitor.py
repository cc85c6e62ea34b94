"""What tells whether a binary net still learns: flipped weights and saturated inputs."""

import torch
from torch import Tensor, nn

from bitbert.model.linear import BinarizerStatistics, BinaryLinear


class BinaryMonitor:
    """Flip ratio and saturation of the binary linears, computed only when asked.

    flip_ratio: share of weights whose sign (of W - mean W) differs from the last call's.
    saturation: share of binarizer inputs outside of the gradient window in the last forward pass, mean over layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._linears = [module for module in model.modules() if isinstance(module, BinaryLinear)]
        self._signs = self._current_signs()

    def watch(self, on: bool) -> None:
        """Observe the following forward passes, or stop: watching costs a pass over every activation."""
        for linear in self._linears:
            linear.input_binarizer.monitor = BinarizerStatistics() if on else None

    def metrics(self) -> dict[str, float]:
        """Metrics since the last call, after a watched forward pass."""
        signs = self._current_signs()
        flipped = torch.stack([(new != old).sum() for new, old in zip(signs, self._signs, strict=True)]).sum()
        self._signs = signs
        observed = [linear.input_binarizer.monitor for linear in self._linears]
        saturation = torch.stack([statistics.saturation for statistics in observed if statistics is not None]).mean()
        return {
            "flip_ratio": flipped.item() / sum(sign.numel() for sign in signs),
            "saturation": saturation.item(),
        }

    @torch.no_grad()
    def _current_signs(self) -> list[Tensor]:
        return [linear.weight >= linear.weight.mean() for linear in self._linears]
