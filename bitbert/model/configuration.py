"""BitBertConfig: HF field names plus what each method binarizes and how. Methods are data, not classes."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from bitbert.errors import UserError, did_you_mean
from bitbert.packed import FORMAT, PackedConfig, parse_config

QUANT_METHOD = "bitbert_packed"
"""What transformers calls packed weights; see bitbert.model.quantizer."""
SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)
_ARCHITECTURES = {
    "none": "BitBertModel",
    "nsp": "BitBertForNextSentencePrediction",
    "classification": "BitBertForSequenceClassification",
    "regression": "BitBertForSequenceClassification",
}

WeightScale = Literal["tensor", "channel"]
InputBinarizer = Literal["signed", "unsigned"]
Pooler = Literal["plain", "residual_norm"]
ResidualEstimators = Literal["shared", "per_head"]
ResidualInit = Literal["normal", "zero"]
Activation = Literal["gelu", "relu"]


@strict
class BitBertConfig(PreTrainedConfig):
    """Shape and method of a binary BERT.

    The shape fields are those of HF's ``BertConfig``. The method fields:

    Attributes:
        method: name of the preset the fields came from; recorded, never branched on.
        weight_scale: one scale a weight matrix (``"tensor"``, BiT and BiPFT) or one an output channel.
        residual_rank: rank of BiPFT's estimators of the binarization residuals in self-attention; 0 = none.
        residual_estimators: one set a layer, ``"shared"`` by its heads (BiPFT), or one set ``"per_head"``.
        residual_init: their weights at the start: ``"normal"`` (BiPFT: N(0, initializer_range)), or ``"zero"``: the
            queries' and values' estimators are 0, so that training starts from the model without estimators.
        hidden_act: activation between the two feed-forward linears.
        ffn_input: binarizer of the second feed-forward linear's input: ``"signed"`` {-a, a} or ``"unsigned"`` {0, a}.
        pooler: ``"plain"``: tanh(BinLinear(x)); ``"residual_norm"``: tanh(LN(BinLinear(x)) + x) (BiPFT).
        mlm_head_act: activation in the masked-LM head (BiPFT's runs ReLU).
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
    weight_scale: WeightScale = "tensor"
    residual_rank: int = 1
    residual_estimators: ResidualEstimators = "shared"
    residual_init: ResidualInit = "normal"
    hidden_act: Activation = "gelu"
    ffn_input: InputBinarizer = "signed"
    pooler: Pooler = "residual_norm"
    mlm_head_act: Activation = "relu"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.residual_rank < 0:
            raise ValueError(f"residual_rank {self.residual_rank} is negative; use 0 for no estimators")
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
        return self.hidden_size // self.num_attention_heads


def from_packed_config(packed: PackedConfig) -> dict[str, Any]:
    """The fields of a :class:`BitBertConfig` for a packed checkpoint, its quantization method included."""
    fields = {name: getattr(packed, name) for name in (*PACKED_METHOD_FIELDS, *SHAPE_FIELDS)}
    fields |= {"quantization_config": {"quant_method": QUANT_METHOD}, "architectures": [_ARCHITECTURES[packed.head]]}
    if packed.head in ("classification", "regression"):
        labels = packed.labels or ["LABEL_0"]
        fields |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return fields


_ELASTIC: dict[str, Any] = {
    "weight_scale": "tensor",
    "hidden_act": "gelu",
    "ffn_input": "signed",
    "mlm_head_act": "relu",
    "residual_estimators": "shared",
    "residual_init": "normal",
}

PRESETS: dict[str, dict[str, Any]] = {
    # BiPFT-B (arXiv 2312.08937): elastic binarizers, residual estimators of rank 1, pooler with norm and skip.
    "bipft-b": {**_ELASTIC, "residual_rank": 1, "pooler": "residual_norm"},
    # BiPFT-A: the same binary BERT, pretrained the same way, without estimators.
    "bipft-a": {**_ELASTIC, "residual_rank": 0, "pooler": "residual_norm"},
    # The task-specific baseline: elastic binarizers in an otherwise vanilla BERT, finetuned without pretraining.
    "baseline": {**_ELASTIC, "residual_rank": 0, "pooler": "plain"},
    # Ours: BiPFT-B with a scale an output channel and two-set binarization in the feed-forward block.
    "bitbert": {
        "weight_scale": "channel",
        "residual_rank": 1,
        "residual_estimators": "shared",
        "residual_init": "normal",
        "hidden_act": "relu",
        "ffn_input": "unsigned",
        "pooler": "residual_norm",
        "mlm_head_act": "gelu",
    },
}


def preset_fields(method: str) -> dict[str, Any]:
    """Config fields of a preset, its name included.

    Raises:
        UserError: there is no such preset.
    """
    if method not in PRESETS:
        raise UserError(
            f"method {method!r} is not known{did_you_mean(method, PRESETS)}; presets: {', '.join(sorted(PRESETS))}"
        )
    return {"method": method, **PRESETS[method]}


METHOD_FIELDS = ("method", *PRESETS["bipft-b"])
# What a packed checkpoint keeps of them: it has no masked-LM head and is not initialised.
PACKED_METHOD_FIELDS = tuple(name for name in METHOD_FIELDS if name not in ("mlm_head_act", "residual_init"))
