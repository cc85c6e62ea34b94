"""Explicit key maps into BitBERT: from a full-precision BERT and from the published implementation's names.

Every map is checked both ways: a key that is missing or left over is an error, never a silent default.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitbert.errors import UserError
from bitbert.model.configuration import BitBertConfig
from bitbert.model.modeling import BitBertForPreTraining, BitBertForSequenceClassification, BitBertPreTrainedModel
from bitbert.presets import preset_fields

# Ours -> HF's name, inside one encoder layer. The binary linears come first.
_LAYER_LINEARS = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
_LAYER_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}
_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")
_MLM_HEAD = {
    "mlm_head.dense.weight": "cls.predictions.transform.dense.weight",
    "mlm_head.dense.bias": "cls.predictions.transform.dense.bias",
    "mlm_head.LayerNorm.weight": "cls.predictions.transform.LayerNorm.weight",
    "mlm_head.LayerNorm.bias": "cls.predictions.transform.LayerNorm.bias",
    "mlm_head.decoder.bias": "cls.predictions.bias",
}
_CLASSIFIER = {"classifier.weight": "classifier.weight", "classifier.bias": "classifier.bias"}
_NSP_HEAD = {"nsp_head.weight": "cls.seq_relationship.weight", "nsp_head.bias": "cls.seq_relationship.bias"}
# Ours -> the published implementation's name, where HF's BERT has nothing.
_REFERENCE_STEPS = {
    "attention.query_binarizer.alpha": "attention.self.clip_query",
    "attention.key_binarizer.alpha": "attention.self.clip_key",
    "attention.value_binarizer.alpha": "attention.self.clip_value",
    "attention.probability_binarizer.alpha": "attention.self.clip_attn",
}
_REFERENCE_ESTIMATORS = {
    "query_residual": "q_p",
    "key_residual": "k_p",
    "query_binary": "q_m",
    "key_binary": "k_m",
    "value_residual": "v_p",
}
# What the published implementations declare and never use: the ends of their parameters' names.
_UNUSED = {
    "bipft": (),
    "bit": (".move_q.bias", ".move_k.bias", ".move_v.bias"),
    "bibert": (".scale", ".gate"),
}
# Copies and buffers that other versions of BERT store beside the parameters.
_REDUNDANT = (
    "bert.embeddings.position_ids",
    "bert.embeddings.token_type_ids",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
)


def from_full_precision(tensors: Mapping[str, Tensor], config: BitBertConfig) -> BitBertForPreTraining:
    """Build a BitBERT whose latent weights are those of a full-precision BERT.

    Args:
        tensors: state dict of HF's BertModel or BertForPreTraining, with or without the prefix ``bert.``.
        config: shape and method of the student; the shape must be the teacher's.

    What BERT lacks keeps its initial value: shifts 0, step sizes 1 until calibrated, estimators N(0, 0.02), the
    pooler's norm 1 and 0, and a head that the tensors do not have.

    Raises:
        UserError: a key or a shape does not fit.
    """
    found = {_with_prefix(name): tensor for name, tensor in tensors.items()}
    mapping = {f"bitbert.{ours}": f"bert.{theirs}" for ours, theirs in _encoder_map(config).items()}
    for head in (_MLM_HEAD, _NSP_HEAD):
        if any(theirs in found for theirs in head.values()):
            mapping |= head
    if not any(name.startswith("bert.pooler.") for name in found):  # encoders saved without pooler
        mapping = {ours: theirs for ours, theirs in mapping.items() if ".pooler." not in ours}
    model = BitBertForPreTraining(config)
    _load(model, found, mapping, what="full-precision BERT")
    return model


def from_reference(tensors: dict[str, Tensor], method: str, config: dict[str, Any]) -> PreTrainedModel:
    """Build a BitBERT from a state dict in a published implementation's parameter names.

    Args:
        tensors: ``bert.encoder.layer.0.attention.self.query.weight``, ... including the elastic step sizes
            (``clip_*``, ``*.input_clip_val``) and shifts (``*.move.bias``) where the method has them.
        method: ``"bipft"``, a pretraining model (BiPFT-B with the estimators' parameters present, BiPFT-A without
            them), ``"bit"`` or ``"bibert"``, classifiers. What those declare and never use is left out.
        config: the shape, in HF's names; ``mlm_head_act`` for BiPFT, ``num_labels`` for the others.

    Raises:
        UserError: the method is unknown, or a key or a shape does not fit.
    """
    if method not in _UNUSED:
        raise UserError(f"reference method {method!r} is not known; wanted 'bipft', 'bit' or 'bibert'")
    preset = method
    model_class: type[BitBertPreTrainedModel] = BitBertForSequenceClassification
    if method == "bipft":
        preset = "bipft-b" if any(".q_p." in name for name in tensors) else "bipft-a"
        model_class = BitBertForPreTraining
    bit_config = BitBertConfig(**{**preset_fields(preset), **config})
    model = model_class(bit_config)
    used = {name: tensor for name, tensor in tensors.items() if not name.endswith(_UNUSED[method])}
    _load(model, used, reference_key_map(bit_config), what=f"{method} state dict")
    mark_calibrated(model)
    return model


def reference_key_map(config: BitBertConfig) -> dict[str, str]:
    """Every trained parameter of ours -> its name in the method's published implementation.

    BiPFT's is the pretraining model, the others are classifiers.
    """
    encoder = _encoder_map(config) | _reference_map(config)
    heads = _MLM_HEAD | _NSP_HEAD if config.method.startswith("bipft") else _CLASSIFIER
    return {f"bitbert.{ours}": f"bert.{theirs}" for ours, theirs in encoder.items()} | heads


def mark_calibrated(model: torch.nn.Module) -> None:
    """Record that the model's step sizes are set, so that nothing calibrates them again."""
    for name, buffer in model.named_buffers():
        if name.endswith(".calibrated"):
            buffer.fill_(True)


def _encoder_map(config: BitBertConfig) -> dict[str, str]:
    """Our encoder's parameters -> HF's names, for what both have."""
    mapping = {f"embeddings.{name}.weight": f"embeddings.{name}.weight" for name in _EMBEDDINGS}
    mapping |= _both("embeddings.LayerNorm", "embeddings.LayerNorm")
    for index in range(config.num_hidden_layers):
        for ours, theirs in (_LAYER_LINEARS | _LAYER_NORMS).items():
            mapping |= _both(f"layers.{index}.{ours}", f"encoder.layer.{index}.{theirs}")
    return mapping | _both("pooler.dense", "pooler.dense")


def _reference_map(config: BitBertConfig) -> dict[str, str]:
    """Our encoder's parameters -> the published names, for what a full-precision BERT lacks."""
    if config.step_sizes == "one":
        return {}

    def binary_linear(ours: str, theirs: str) -> dict[str, str]:
        return {
            f"{ours}.shift": f"{theirs}.move.bias",
            f"{ours}.input_binarizer.alpha": f"{theirs}.input_clip_val",
        }

    mapping = binary_linear("pooler.dense", "pooler.dense")
    if config.pooler == "residual_norm":
        mapping |= _both("pooler.LayerNorm", "pooler.LayerNorm")
    for index in range(config.num_hidden_layers):
        ours_layer, theirs_layer = f"layers.{index}", f"encoder.layer.{index}"
        for ours, theirs in _LAYER_LINEARS.items():
            mapping |= binary_linear(f"{ours_layer}.{ours}", f"{theirs_layer}.{theirs}")
        for ours, theirs in _REFERENCE_STEPS.items():
            mapping[f"{ours_layer}.{ours}"] = f"{theirs_layer}.{theirs}"
        if config.residual_rank:
            for ours, theirs in _REFERENCE_ESTIMATORS.items():
                mapping |= _both(f"{ours_layer}.attention.estimator.{ours}", f"{theirs_layer}.attention.self.{theirs}")
    return mapping


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def _with_prefix(name: str) -> str:
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


@torch.no_grad()
def _load(model: BitBertPreTrainedModel, found: Mapping[str, Tensor], mapping: Mapping[str, str], what: str) -> None:
    parameters = dict(model.named_parameters())
    missing = sorted(set(mapping.values()) - set(found))
    left_over = sorted(set(found) - set(mapping.values()) - set(_REDUNDANT))
    if missing or left_over:
        raise UserError(
            f"{what}: missing {_some(missing)}; not understood {_some(left_over)}; "
            "the keys must be exactly those of the architecture"
        )
    for ours, theirs in mapping.items():
        source, target = found[theirs], parameters[ours]
        if source.numel() != target.numel() or (source.dim() > 0 and source.shape != target.shape):
            raise UserError(
                f"{what}: {theirs} has shape {tuple(source.shape)}, wanted {tuple(target.shape)}; "
                "teacher and student must have the same shape"
            )
        target.copy_(source.reshape(target.shape))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" if names else "none"
