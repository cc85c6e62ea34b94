"""BitBertConfig: HF field names plus what each method binarizes and how. Methods are data, not classes."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from bitbert.config import Pairs
from bitbert.errors import UserError
from bitbert.model.levels import check_activation_bits
from bitbert.packed import FORMAT, SIZES, PackedConfig, parse_config
from bitbert.presets import ELASTIC, PRESETS, preset_fields

QUANT_METHOD = "bitbert_packed"
"""What transformers calls packed weights; see bitbert.model.quantizer."""
SHAPE_FIELDS = (*SIZES, "layer_norm_eps")
DROPOUT_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
_INHERITED_FIELDS = (*SHAPE_FIELDS, *DROPOUT_FIELDS, "pad_token_id")
_PRETRAINED = {"none": "BitBertModel", "nsp": "BitBertForNextSentencePrediction"}
"""The classes of packed heads that no task has finetuned; all others are BitBertForSequenceClassification."""

WeightScale = Literal["tensor", "channel"]
InputBinarizer = Literal["signed", "unsigned"]
Pooler = Literal["plain", "residual_norm"]
WeightBinarizerName = Literal["mean_centered", "row_centered", "uncentered", "ternary"]
StepSizes = Literal["learned", "one", "minmax"]
Attention = Literal["softmax", "bi", "bi_strict"]
ResidualEstimators = Literal["shared", "per_head"]
ResidualInit = Literal["normal", "zero"]
Activation = Literal["gelu", "relu"]


@strict
class BitBertConfig(PreTrainedConfig):
    """Shape and method of a binary BERT.

    The shape fields are those of HF's ``BertConfig``. The method fields:

    Attributes:
        method: name of the preset the fields came from; recorded, never branched on.
        weight_binarizer: what a weight is compared with, and the gradient it gets: see bitbert.model.weights.
        weight_scale: one scale a weight matrix (``"tensor"``, BiT and BiPFT) or one an output channel.
        split_weights: each weight is the sum of two binary ones (BinaryBERT after ternary weight splitting).
        step_sizes: of activations: ``"learned"`` (elastic), ``"one"`` (BiBERT's plain sign), or ``"minmax"``:
            max|x| of the tensor over the highest code (TernaryBERT).
        input_shift: a learned shift before a linear layer's input is binarized (BiT's and BiPFT's "move").
        attention: ``"softmax"``: probabilities above half a step; ``"bi"``: scores of at least 0 (Bi-Attention);
            ``"bi_strict"``: scores above 0, as in BiBERT's published code.
        attention_head_size: width of a head where it is not hidden_size / num_attention_heads (half-width models).
        residual_rank: rank of BiPFT's estimators of the binarization residuals in self-attention; 0 = none.
        residual_estimators: one set a layer, ``"shared"`` by its heads (BiPFT), or one set ``"per_head"``.
        residual_init: their weights at the start: ``"normal"`` (BiPFT: N(0, initializer_range)), or ``"zero"``: the
            queries' and values' estimators are 0, so that training starts from the model without estimators.
        hidden_act: activation between the two feed-forward linears.
        ffn_input: binarizer of the second feed-forward linear's input: ``"signed"`` {-a, a} or ``"unsigned"`` {0, a}.
        pooler: ``"plain"``: tanh(BinLinear(x)); ``"residual_norm"``: tanh(LN(BinLinear(x)) + x) (BiPFT).
        mlm_head_act: activation in the masked-LM head (BiPFT's runs ReLU).
        pairs: how BitBertForSequenceClassification answers two texts: ``"cross_encoder"``: one sequence holds both, and
            the head sees its pooled output (BERT); ``"bi_encoder"``: each is encoded by itself (bitbert.model.pairs).
        activation_bits: 1, or 2, 4 or 8 for more levels an activation (BiT's W1A2, W1A4); see bitbert.model.levels.
    """

    model_type = "bitbert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True

    method: str = "bipft-b"
    weight_binarizer: WeightBinarizerName = "mean_centered"
    weight_scale: WeightScale = "tensor"
    split_weights: bool = False
    step_sizes: StepSizes = "learned"
    input_shift: bool = True
    attention: Attention = "softmax"
    attention_head_size: int | None = None
    residual_rank: int = 1
    residual_estimators: ResidualEstimators = "shared"
    residual_init: ResidualInit = "normal"
    hidden_act: Activation = "gelu"
    ffn_input: InputBinarizer = "signed"
    pooler: Pooler = "residual_norm"
    mlm_head_act: Activation = "relu"
    activation_bits: int = 1
    pairs: Pairs = "cross_encoder"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.residual_rank < 0:
            raise ValueError(f"residual_rank {self.residual_rank} is negative; use 0 for no estimators")
        check_activation_bits(self.activation_bits)
        if self.activation_bits > 1 and (self.attention != "softmax" or self.step_sizes == "one"):
            raise ValueError(
                f"activation_bits {self.activation_bits} with attention {self.attention!r} and step_sizes "
                f"{self.step_sizes!r}; Bi-Attention and the plain sign have 1 bit, use softmax and learned or minmax"
            )
        if self.residual_rank and self.attention != "softmax":
            raise ValueError(f"residual_rank {self.residual_rank} with Bi-Attention; use residual_rank 0 or softmax")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; config.json of a packed checkpoint is understood too."""
        if config_dict.get("format") == FORMAT:
            own = {key: value for key, value in config_dict.items() if not key.startswith("_")}  # the hub adds some
            config_dict = from_packed_config(parse_config(own, "config.json"))
        return super().from_dict(config_dict, **kwargs)

    @property
    def head_size(self) -> int:
        return self.attention_head_size or self.hidden_size // self.num_attention_heads


def inherited_fields(full_precision: Any) -> dict[str, Any]:
    """What a binary model takes over from the config of a full-precision BERT: its shape, dropouts and padding."""
    return {name: getattr(full_precision, name) for name in _INHERITED_FIELDS}


def binary_config(inherited: dict[str, Any], method: str, fields: dict[str, Any], where: str) -> BitBertConfig:
    """A preset in the shape of a full-precision BERT.

    Args:
        inherited: from :func:`inherited_fields`.
        fields: of the method and dropouts, where they differ from the preset's and the BERT's; ``where`` is what they
            are called in messages.

    Raises:
        UserError: there is no such preset, an unknown field, a value of the wrong kind, or another shape.
    """
    preset = preset_fields(method)
    known = sorted({*inherited, *preset} - {"method"})
    unknown = sorted(set(fields) - set(known))
    if unknown:  # transformers' configs take any name
        raise UserError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    for name, value in fields.items():
        if name not in (*preset, *DROPOUT_FIELDS) and value != inherited[name]:
            raise UserError(
                f"{where}.{name} is {value!r}, the teacher's is {inherited[name]!r}; "
                "the student must have the teacher's shape, leave it out"
            )
    try:
        return BitBertConfig(**(inherited | preset | fields))
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


_TRAINING_FIELDS = ("weight_binarizer", "step_sizes", "input_shift")


def from_packed_config(packed: PackedConfig) -> dict[str, Any]:
    """The fields of a :class:`BitBertConfig` for a packed checkpoint, its quantization method included."""
    fields = {name: getattr(packed, name) for name in (*PACKED_METHOD_FIELDS, *SHAPE_FIELDS)}
    # How such a model trains on does not show in its function: that is what the method's name says.
    fields |= {name: PRESETS.get(packed.method, ELASTIC)[name] for name in _TRAINING_FIELDS}
    architecture = _PRETRAINED.get(packed.head, "BitBertForSequenceClassification")
    fields |= {"quantization_config": {"quant_method": QUANT_METHOD}, "architectures": [architecture]}
    fields["pairs"] = "bi_encoder" if packed.compares_texts else "cross_encoder"
    if packed.head not in _PRETRAINED:
        labels = packed.labels or ["LABEL_0"]
        fields |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return fields


# What a packed checkpoint says of a method: what its function depends on.
PACKED_METHOD_FIELDS = (
    "method",
    "weight_scale",
    "attention",
    "residual_rank",
    "residual_estimators",
    "hidden_act",
    "ffn_input",
    "pooler",
)
