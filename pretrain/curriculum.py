"""Gradual binarization: activations of 8, 4 or 2 bits first, and of the method's own number in the end."""

from itertools import pairwise

from bitbert.errors import UserError
from bitbert.model import BitBertConfig, BitBertPreTrainedModel
from bitbert.model.calibrate import set_activation_bits

from .config import CurriculumStage
from .engine import Engine


class Curriculum:
    """How many bits activations have at an update: a function of its number, so a resumed run needs no memory of it.

    At a stage's end step sizes are rescaled by sqrt(Q_p before / Q_p after), the ratio of their initial rule (LSQ), and
    the optimizer keeps its moments. Evaluations and checkpoints at that step still have the bits of the ended stage.
    Going from 2 bits to 1 within one training is BiT's multi-step distillation without its second run (arXiv
    2205.13016), done in pretraining.

    Raises:
        UserError: a stage has no more bits than what follows, or the method has no activations of more than 1 bit.
    """

    def __init__(self, stages: tuple[CurriculumStage, ...], config: BitBertConfig) -> None:
        self._stages, self._final = stages, config.activation_bits
        course = [*(stage.activation_bits for stage in stages), self._final]
        if any(now <= after for now, after in pairwise(course)):
            raise UserError(
                f"curriculum goes over {', '.join(map(str, course))} bits, the last being the method's own; "
                "each stage must have more bits than the next"
            )
        if stages and (config.attention != "softmax" or config.step_sizes == "one"):
            raise UserError(
                f"curriculum with method {config.method!r}, whose activations are plain signs; "
                "use a method with elastic step sizes and softmax"
            )

    def bits(self, step: int) -> int:
        """Bits of the update number ``step`` (0-based)."""
        return next((stage.activation_bits for stage in self._stages if step < stage.until), self._final)

    def restore(self, model: BitBertPreTrainedModel, step: int) -> None:
        """Give a model whose step sizes are those after ``step`` updates the bits that belong to them."""
        set_activation_bits(model, self.bits(max(0, step - 1)), rescale=False)

    def follow(self, engine: Engine, step: int) -> int | None:
        """Before the update number ``step``: go over to its bits; returns them where they are new."""
        bits = self.bits(step)
        if step == 0 or bits == self.bits(step - 1):
            return None
        engine.change_step_sizes(lambda model: set_activation_bits(model, bits))
        return bits
