"""The transformers classes: one encoder, and the heads for pretraining and for tasks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import ModelOutput

from bitbert.model.attention import ResidualEstimator
from bitbert.model.configuration import BitBertConfig
from bitbert.model.layers import Embeddings, EncoderLayer, MaskedLMHead, Pooler
from bitbert.model.linear import Binarizer, BinaryLinear
from bitbert.model.methods import CodedEmbedding, CodedLinear, apply_method, freeze_fixed
from bitbert.model.pairs import compares_texts, encode_apart
from bitbert.model.precision import products_as_they_are
from bitbert.packed import PAIR_PARTS

IGNORED_LABEL = -100


@dataclass
class PreTrainingOutput(ModelOutput):
    """Output of :class:`BitBertForPreTraining`.

    Attributes:
        loss: MLM + NSP cross-entropy, when both labels were given.
        prediction_logits: (batch, positions, vocabulary), or (num_masked, vocabulary) with ``masked_positions``.
        seq_relationship_logits: (batch, 2); class 0 = B follows A.
        hidden_states: embedding output and each layer's output, (batch, positions, hidden) each.
        attentions: binarized attention probabilities of each layer.
    """

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class BitBertPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by all BitBERT classes."""

    config_class = BitBertConfig
    config: BitBertConfig
    base_model_prefix = "bitbert"
    # Losses are means over the batch; transformers.Trainer then leaves its own count of items out of the call.
    accepts_loss_kwargs = False
    # Step sizes and shifts decide bits; casting them to half precision would move thresholds.
    _keep_in_fp32_modules_strict = {"alpha", "shift"}  # noqa: RUF012 (the name and type transformers reads)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As in transformers, which forgets what is frozen: parameters that the method does not learn stay so."""
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        freeze_fixed(model, model.config)
        return loaded

    def _returns_dict(self, options: dict[str, Any]) -> bool:
        """Take ``return_dict`` out of a call's options; None and its absence mean the config's."""
        return _flag(options.pop("return_dict", None), self.config.return_dict)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BinaryLinear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.bias)
            init.zeros_(module.shift)
            if isinstance(module, CodedLinear) and module.split_weight is not None:
                init.zeros_(module.split_weight)
        elif isinstance(module, Binarizer):
            init.ones_(module.alpha)
            init.zeros_(module.calibrated)
        elif isinstance(module, ResidualEstimator) and self.config.residual_init == "zero":
            # The keys' factors keep their random weights: with both sides at zero no gradient would ever move either.
            for linear in (module.query_residual, module.query_binary, module.value_residual):
                init.zeros_(linear.weight)
        else:
            super()._init_weights(module)
            if isinstance(module, CodedEmbedding) and module.split_weight is not None:
                init.zeros_(module.split_weight)


class BitBertModel(BitBertPreTrainedModel):
    """The binary encoder: embeddings, layers and pooler."""

    def __init__(self, config: BitBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Pooler(config)
        apply_method(self, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Take a new word table; a plain nn.Embedding's weights are kept in binary form.

        ``resize_token_embeddings`` hands over a plain embedding, which would silently stop being binary.
        """
        table = self.embeddings.word_embeddings
        assert isinstance(value, nn.Embedding)  # what transformers hands over
        table.weight, table.num_embeddings = value.weight, value.num_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """
        Args:
            input_ids: (batch, positions), int64.
            attention_mask: (batch, positions), 1 at text and 0 at padding; None = no padding.
            token_type_ids: (batch, positions), 0 or 1; None = all 0.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        hidden = self.embeddings(input_ids, token_type_ids)
        bias = None
        if attention_mask is not None:
            bias = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        with_attentions = _flag(output_attentions, self.config.output_attentions)
        hidden_states, attentions = [hidden], []
        for layer in self.layers:
            hidden, attention = layer(hidden, bias, output_attentions=with_attentions)
            hidden_states.append(hidden)
            attentions.append(attention)
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.pooler(hidden),
            hidden_states=tuple(hidden_states)
            if _flag(output_hidden_states, self.config.output_hidden_states)
            else None,
            attentions=tuple(attentions) if with_attentions else None,
        )
        return output if _flag(return_dict, self.config.return_dict) else output.to_tuple()


class _WithMaskedLMHead(BitBertPreTrainedModel):
    """What transformers asks of a model whose decoder is tied to the latent word table."""

    _tied_weights_keys = {"mlm_head.decoder.weight": "bitbert.embeddings.word_embeddings.weight"}  # noqa: RUF012
    mlm_head: MaskedLMHead

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.mlm_head.decoder = value


class BitBertForPreTraining(_WithMaskedLMHead):
    """Masked-LM and next-sentence heads on the binary encoder."""

    def __init__(self, config: BitBertConfig) -> None:
        super().__init__(config)
        self.bitbert = BitBertModel(config)
        self.mlm_head = MaskedLMHead(config)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **options: Any,
    ) -> PreTrainingOutput | tuple[Any, ...]:
        """
        Args:
            masked_positions: flat indices into (batch * positions), (num_masked,), int64. The decoder, by far the
                widest product of the model, then runs on these only.
            labels: token ids, -100 where not masked; (batch, positions), or (num_masked,) with ``masked_positions``.
            next_sentence_label: (batch,), 0 = B follows A, 1 = random.
            options: ``output_hidden_states``, ``output_attentions`` and ``return_dict``.
        """
        return_dict = self._returns_dict(options)
        output = self.bitbert(input_ids, attention_mask, token_type_ids, return_dict=True, **options)
        hidden = output.last_hidden_state
        if masked_positions is not None:
            hidden = hidden.flatten(0, 1)[masked_positions]
        prediction_logits = self.mlm_head(hidden)
        nsp_logits = self.nsp_head(output.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = _token_loss(prediction_logits, labels) + nn.functional.cross_entropy(nsp_logits, next_sentence_label)
        result = PreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=nsp_logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if return_dict else result.to_tuple()


class _LabelledModel(BitBertPreTrainedModel):
    """An encoder and one head with one kind of labels; subclasses say what the head computes, and its loss."""

    output_class: type[ModelOutput]

    def __init__(self, config: BitBertConfig) -> None:
        super().__init__(config)
        self.bitbert = BitBertModel(config)

    def encode(self, input_ids: Tensor, **inputs: Any) -> BaseModelOutputWithPooling:
        """What the head sees: by default the encoder on its inputs and options."""
        output: BaseModelOutputWithPooling = self.bitbert(input_ids, return_dict=True, **inputs)
        return output

    def compute_logits(self, output: BaseModelOutputWithPooling) -> Tensor:
        """What the encoder says -> logits of the class's shape; each head has its own."""
        raise NotImplementedError

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """
        Args:
            labels: as the class says; without them there is no loss.
            options: ``output_hidden_states``, ``output_attentions`` and ``return_dict``.
        """
        return_dict = self._returns_dict(options)
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = self.encode(input_ids, **inputs, **options)
        logits = self.compute_logits(output)
        result = self.output_class(
            loss=None if labels is None else self.compute_loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if return_dict else result.to_tuple()


class BitBertForMaskedLM(_LabelledModel, _WithMaskedLMHead):
    """Masked-LM head on the binary encoder; labels are token ids (batch, positions), -100 where not masked."""

    output_class = MaskedLMOutput

    def __init__(self, config: BitBertConfig) -> None:
        super().__init__(config)
        self.mlm_head = MaskedLMHead(config)
        self.post_init()

    def compute_logits(self, output: BaseModelOutputWithPooling) -> Tensor:
        return self.mlm_head(output.last_hidden_state)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _token_loss(logits, labels)


class BitBertForNextSentencePrediction(_LabelledModel):
    """Next-sentence head on the pooled output; labels (batch,), 0 = B follows A, 1 = random."""

    output_class = NextSentencePredictorOutput

    def __init__(self, config: BitBertConfig) -> None:
        super().__init__(config)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def compute_logits(self, output: BaseModelOutputWithPooling) -> Tensor:
        return self.nsp_head(output.pooler_output)


class _Classifier(_LabelledModel):
    """Dropout and a full-precision linear classifier."""

    def __init__(self, config: BitBertConfig, num_parts: int = 1) -> None:
        """num_parts: how many vectors of the hidden size the classifier sees, side by side."""
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(num_parts * config.hidden_size, self.num_labels)
        self.post_init()

    def classify(self, states: Tensor | None) -> Tensor:
        """Logits in the classifier's own type: autocast would round them, and with them what regression can learn."""
        assert states is not None
        with products_as_they_are(states.device):
            return self.classifier(self.dropout(states).to(self.classifier.weight.dtype))


class BitBertForSequenceClassification(_Classifier):
    """A classifier on the pooled output, or with ``config.pairs`` ``"bi_encoder"`` on what two texts say apart.

    The latter answers pairs only: (batch, positions) ids whose types are 0 and then 1, of which it makes twice as many
    texts (see bitbert.model.pairs); hidden states and attentions are those of the texts.

    The loss is that of ``config.problem_type``, as in transformers: cross-entropy with int64 classes (batch,), mean
    squared error with values (batch,) or (batch, labels), or for ``multi_label_classification`` binary cross-entropy
    with floats (batch, labels). Where the config has none, one label is regression, and the labels' type decides else.
    """

    output_class = SequenceClassifierOutput

    def __init__(self, config: BitBertConfig) -> None:
        super().__init__(config, PAIR_PARTS if compares_texts(config) else 1)

    def encode(self, input_ids: Tensor, **inputs: Any) -> BaseModelOutputWithPooling:
        if not compares_texts(self.config):
            return super().encode(input_ids, **inputs)
        return encode_apart(self.bitbert, input_ids, return_dict=True, **inputs)

    def compute_logits(self, output: BaseModelOutputWithPooling) -> Tensor:
        return self.classify(output.pooler_output)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return sequence_loss(self.config, logits, labels)


class BitBertForTokenClassification(_Classifier):
    """A classifier on each position of the last layer.

    Labels (batch, positions): int64 classes, -100 where a position has none; logits have a class axis more.
    """

    output_class = TokenClassifierOutput

    def compute_logits(self, output: BaseModelOutputWithPooling) -> Tensor:
        return self.classify(output.last_hidden_state)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _token_loss(logits, labels)


class BitBertForQuestionAnswering(BitBertPreTrainedModel):
    """A full-precision linear layer that scores each position as the answer's first and as its last token."""

    def __init__(self, config: BitBertConfig) -> None:
        super().__init__(config)
        self.bitbert = BitBertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """start_positions, end_positions: (batch,), int64; -100 leaves a row out of the loss.

        Logits are (batch, positions); loss = (CE(start) + CE(end)) / 2, as in BERT's SQuAD head.
        """
        return_dict = self._returns_dict(options)
        output = self.bitbert(input_ids, attention_mask, token_type_ids, return_dict=True, **options)
        start_logits, end_logits = self.qa_outputs(output.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_token_loss(start_logits, start_positions) + _token_loss(end_logits, end_positions)) / 2
        result = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if return_dict else result.to_tuple()


def sequence_loss(config: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of ``config.problem_type`` on logits (batch, labels): see :class:`BitBertForSequenceClassification`."""
    several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    problem = config.problem_type or ("regression" if config.num_labels == 1 else several)
    if problem == "single_label_classification":
        return nn.functional.cross_entropy(logits, labels)
    labels = labels.to(logits.dtype).view_as(logits)
    if problem == "regression":
        return nn.functional.mse_loss(logits, labels)
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def _token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL)


def _flag(given: bool | None, default: bool | None) -> bool:
    return bool(default if given is None else given)
