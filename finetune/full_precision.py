"""HF's BERT as a classifier of texts and of pairs, in full precision: teachers, and the reference for binary models."""

from typing import Any

from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from bitbert.model.modeling import sequence_loss
from bitbert.model.pairs import compares_texts, encode_apart
from bitbert.packed import PAIR_PARTS


class FullPrecisionClassifier(BertForSequenceClassification):
    """``BertForSequenceClassification``; with ``config.pairs`` ``"bi_encoder"`` it encodes the texts of pairs apart.

    The latter is BitBertForSequenceClassification's way, feature for feature (bitbert.model.pairs), so that what one
    bit costs can be told from what the head brings. Without the field it is HF's class, weight for weight.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if compares_texts(config):
            self.classifier = nn.Linear(PAIR_PARTS * config.hidden_size, int(config.num_labels or 0))
            self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As HF's; hidden states and attentions of a bi-encoder are those of the texts."""
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, **options}
        if not compares_texts(self.config):
            return super().forward(input_ids=input_ids, labels=labels, **inputs)
        output = encode_apart(self.bert, input_ids, **inputs)
        logits = self.classifier(self.dropout(output.pooler_output))
        return SequenceClassifierOutput(
            loss=None if labels is None else sequence_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
