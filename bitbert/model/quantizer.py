"""The transformers quantizer that loads packed checkpoints as they are: ``from_pretrained`` keeps 1 bit a weight.

config.json of a packed checkpoint is translated by :func:`bitbert.model.configuration.from_packed_config`, which
names the quantization method below; transformers then asks this plugin to put packed layers where bits belong.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitbert.errors import UserError
from bitbert.model.configuration import QUANT_METHOD
from bitbert.model.convert import mark_calibrated
from bitbert.model.linear import BinaryEmbedding, BinaryLinear
from bitbert.model.packed_layers import PackedEmbedding, PackedLinear
from bitbert.model.stacked_layers import layer_conversions


@register_quantization_config(QUANT_METHOD)
class BitBertPackedConfig(QuantizationConfigMixin):
    """Says that weights are packed; everything else is in the model's own config."""

    quant_method: Any  # transformers' type lists its own methods only

    def __init__(self, quant_method: str = QUANT_METHOD, **_: Any) -> None:
        self.quant_method = quant_method


@register_quantizer(QUANT_METHOD)
class BitBertPackedQuantizer(HfQuantizer):
    """Puts packed layers where the checkpoint has bits, before its tensors are read."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise UserError(
                "from_pretrained was asked to pack a checkpoint that is not packed; pack it with bitbert-export, "
                "which calibrates and verifies, and load the result without a quantization_config"
            )

    def update_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        """float32, whatever was asked for: it is the packed format's arithmetic, and thresholds depend on it."""
        return torch.float32

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if hasattr(model, "mlm_head"):
            raise UserError(
                f"a packed checkpoint has no masked-LM head, which {type(model).__name__} wants; "
                "load the training checkpoint, or a class without that head"
            )
        for name, module in list(model.named_modules()):
            if isinstance(module, BinaryLinear):
                model.set_submodule(name, PackedLinear.like(module))
            elif isinstance(module, BinaryEmbedding):
                model.set_submodule(name, PackedEmbedding.like(module))
        # Packed checkpoints hold calibrated steps by definition and do not spend a tensor on saying so.
        model._keys_to_ignore_on_load_missing = [r"\.calibrated$"]

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """The file holds the layers' tensors stacked; it is written back the same way."""
        conversions: list[Any] = super().update_weight_conversions(weight_conversions, model)
        return conversions + layer_conversions(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        mark_calibrated(model)
        return model

    def is_serializable(self) -> bool:
        """save_pretrained writes the same bits in transformers' own layout, which loads again."""
        return True

    @property
    def is_trainable(self) -> bool:
        return False
