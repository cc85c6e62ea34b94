"""The torch model. Importing this package registers BitBERT with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from bitbert.model.configuration import SHAPE_FIELDS, BitBertConfig
from bitbert.model.hf_tokenizer import BitBertTokenizer
from bitbert.model.modeling import (
    BitBertForMaskedLM,
    BitBertForNextSentencePrediction,
    BitBertForPreTraining,
    BitBertForQuestionAnswering,
    BitBertForSequenceClassification,
    BitBertForTokenClassification,
    BitBertModel,
    BitBertPreTrainedModel,
)
from bitbert.model.quantizer import BitBertPackedConfig, BitBertPackedQuantizer

AutoConfig.register(BitBertConfig.model_type, BitBertConfig)
AutoModel.register(BitBertConfig, BitBertModel)
AutoModelForPreTraining.register(BitBertConfig, BitBertForPreTraining)
AutoModelForMaskedLM.register(BitBertConfig, BitBertForMaskedLM)
AutoModelForNextSentencePrediction.register(BitBertConfig, BitBertForNextSentencePrediction)
AutoModelForSequenceClassification.register(BitBertConfig, BitBertForSequenceClassification)
AutoModelForTokenClassification.register(BitBertConfig, BitBertForTokenClassification)
AutoModelForQuestionAnswering.register(BitBertConfig, BitBertForQuestionAnswering)
AutoTokenizer.register(BitBertConfig, fast_tokenizer_class=BitBertTokenizer)

__all__ = [
    "SHAPE_FIELDS",
    "BitBertConfig",
    "BitBertForMaskedLM",
    "BitBertForNextSentencePrediction",
    "BitBertForPreTraining",
    "BitBertForQuestionAnswering",
    "BitBertForSequenceClassification",
    "BitBertForTokenClassification",
    "BitBertModel",
    "BitBertPackedConfig",
    "BitBertPackedQuantizer",
    "BitBertPreTrainedModel",
    "BitBertTokenizer",
]
