"""The torch model. Importing this package registers BitBERT with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from bitbert.model.configuration import METHOD_FIELDS, PRESETS, SHAPE_FIELDS, BitBertConfig, preset_fields
from bitbert.model.modeling import (
    BitBertForMaskedLM,
    BitBertForNextSentencePrediction,
    BitBertForPreTraining,
    BitBertForSequenceClassification,
    BitBertModel,
    BitBertPreTrainedModel,
)

AutoConfig.register(BitBertConfig.model_type, BitBertConfig)
AutoModel.register(BitBertConfig, BitBertModel)
AutoModelForPreTraining.register(BitBertConfig, BitBertForPreTraining)
AutoModelForMaskedLM.register(BitBertConfig, BitBertForMaskedLM)
AutoModelForNextSentencePrediction.register(BitBertConfig, BitBertForNextSentencePrediction)
AutoModelForSequenceClassification.register(BitBertConfig, BitBertForSequenceClassification)

__all__ = [
    "METHOD_FIELDS",
    "PRESETS",
    "SHAPE_FIELDS",
    "BitBertConfig",
    "BitBertForMaskedLM",
    "BitBertForNextSentencePrediction",
    "BitBertForPreTraining",
    "BitBertForSequenceClassification",
    "BitBertModel",
    "BitBertPreTrainedModel",
    "preset_fields",
]
