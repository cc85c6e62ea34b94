"""Step sizes before any optimizer or engine sees the model: from one forward pass, or for another number of bits."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitbert.errors import UserError
from bitbert.model.levels import check_activation_bits, level_range
from bitbert.model.linear import Binarizer
from bitbert.model.modeling import BitBertPreTrainedModel


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


@torch.no_grad()
def set_activation_bits(model: BitBertPreTrainedModel, bits: int, *, rescale: bool = True) -> None:
    """Change the bits of all activations of a model in training, as a curriculum from 8 or 4 bits to 1 does.

    Step sizes are rescaled by sqrt(Q_p before / Q_p now), the ratio of their initial rule, so that the curriculum
    needs no data and stays equal on all ranks; :func:`calibrate_step_sizes` may follow. An optimizer that keeps its
    own copy of the parameters must be built afterwards, or be told. ``model.config.activation_bits`` follows.
    Without ``rescale`` step sizes stay: they are those of ``bits`` already, from a checkpoint, or not yet calibrated.

    Raises:
        UserError: there are no activations of this many bits, or the method has 1 bit only (BiBERT).
    """
    try:
        check_activation_bits(bits)
    except ValueError as error:
        raise UserError(str(error)) from error
    binarizers = [module for module in model.modules() if isinstance(module, Binarizer)]
    if bits > 1 and any(binarizer.steps == "one" for binarizer in binarizers):
        raise UserError(f"activation_bits {bits} for a model of plain signs; only elastic and minmax steps have levels")
    for binarizer in binarizers:
        (_, before), (_, now) = (level_range(binarizer.kind, number) for number in (binarizer.bits, bits))
        if rescale and binarizer.steps == "learned":
            binarizer.alpha.mul_((before / now) ** 0.5)
        binarizer.bits = bits
    model.config.activation_bits = bits
