"""Initial step sizes from one forward pass, before any optimizer or engine sees the model."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitbert.model.linear import Binarizer


@torch.no_grad()
def calibrate_step_sizes(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Initialise every step size in one forward pass, each from inputs that the earlier ones already shape.

    alpha = 2 mean|x| (signed) or 4 mean|x| (unsigned) over the batch (LSQ's rule, BiT and BiPFT). In the published
    code it happens inside the first training step, on each rank from its own rows; here it is an act of its own,
    in eval mode, so that ranks can share the result.

    Args:
        inputs: keyword arguments of ``model``, without labels.
    """
    binarizers = [module for module in model.modules() if isinstance(module, Binarizer)]
    was_training = model.training
    model.eval()
    for binarizer in binarizers:
        binarizer.calibrating = True
    try:
        model(**inputs)
    finally:
        for binarizer in binarizers:
            binarizer.calibrating = False
        model.train(was_training)
