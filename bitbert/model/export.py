"""Training weights <-> packed bits, and the proof that both compute the same function."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitbert.errors import UserError
from bitbert.model.binarize import MIN_STEP, weight_statistics
from bitbert.model.configuration import PACKED_METHOD_FIELDS, SHAPE_FIELDS, BitBertConfig, from_packed_config
from bitbert.model.convert import mark_calibrated
from bitbert.model.linear import Binarizer, BinaryEmbedding, BinaryLinear
from bitbert.model.methods import check_packable
from bitbert.model.modeling import (
    BitBertForNextSentencePrediction,
    BitBertForPreTraining,
    BitBertForSequenceClassification,
    BitBertModel,
    BitBertPreTrainedModel,
)
from bitbert.model.pairs import compares_texts
from bitbert.model.weights import WEIGHT_BINARIZERS
from bitbert.packed import PackedConfig, PackedModel, pack_bits, tensor_specs, unpack_bits
from bitbert.tokenizer import Tokenizer

_NEGLIGIBLE_SCALE = 1e-6


@torch.no_grad()
def pack_model(model: PreTrainedModel, tokenizer: Tokenizer, *, max_length: int) -> PackedModel:
    """Pack a model's deployable part: the encoder and its NSP or task head.

    The masked-LM head stays behind: its decoder is the full-precision word table (89 MiB at BERT-base).

    Args:
        model: a pretraining, next-sentence or sequence-classification model with calibrated step sizes.
        max_length: longest sequence the model was trained on; the runtime cuts texts to it.

    Raises:
        UserError: activations have more than 1 bit, step sizes were never calibrated, or the tokenizer has another
            number of tokens than the model.
    """
    config = model.config
    check_packable(config)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; "
            "use the tokenizer the model was trained with"
        )
    uncalibrated = [
        name for name, module in model.named_modules() if isinstance(module, Binarizer) and not module.calibrated.item()
    ]
    if uncalibrated:
        raise UserError(
            f"step sizes of {len(uncalibrated)} binarizers (e.g. {uncalibrated[0]}) were never calibrated; "
            "train the model before packing it"
        )
    head, labels = _head_of(model)
    packed_config = PackedConfig(
        **{name: getattr(config, name) for name in (*SHAPE_FIELDS, *PACKED_METHOD_FIELDS)},
        head=head,
        labels=labels,
        max_length=max_length,
        tokenizer=tokenizer.describe(),
    )
    tensors = {name: parameter.detach().float().cpu().numpy() for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, BinaryLinear | BinaryEmbedding):
            tensors |= {f"{name}.{part}": value for part, value in _pack_weight(module).items()}
    for name in tensors:
        if name.endswith(".alpha"):
            tensors[name] = np.maximum(tensors[name], np.float32(MIN_STEP))
    return PackedModel(packed_config, {name: tensors[name] for name in tensor_specs(packed_config)}, tokenizer)


@torch.no_grad()
def unpack_model(packed: PackedModel, **config_fields: Any) -> BitBertPreTrainedModel:
    """Build the torch model of a packed checkpoint; latent weights are scale * (±1).

    ``config_fields`` override config entries that packing does not keep, such as dropout. The binarized weights of
    the result are those of the checkpoint, bit for bit; this is checked.

    Raises:
        UserError: a row's bits are so unbalanced, or its scale so small, that latent weights cannot hold them.
    """
    fields = from_packed_config(packed.config)
    del fields["quantization_config"]  # the weights of this model are latent
    config = BitBertConfig(**fields | config_fields)
    model_class = {"none": BitBertModel, "nsp": BitBertForNextSentencePrediction}.get(
        packed.config.head, BitBertForSequenceClassification
    )
    model = model_class(config)
    prefix = "bitbert." if model_class is BitBertModel else ""
    for name, parameter in model.named_parameters():
        if f"{prefix}{name}" in packed.tensors:
            parameter.copy_(torch.from_numpy(packed.tensors[f"{prefix}{name}"]))
    for name, module in model.named_modules():
        if isinstance(module, BinaryLinear | BinaryEmbedding):
            key = f"{prefix}{name}"
            bits, scale = packed.tensors[f"{key}.weight_bits"], packed.tensors[f"{key}.weight_scale"]
            signs = np.where(unpack_bits(bits, module.weight.shape[1]), np.float32(-1), np.float32(1))
            module.weight.copy_(torch.from_numpy(signs * scale[:, None]))
            changed = (_pack_weight(module)["weight_bits"] != bits).any(axis=1)
            # An all-zero row (a padding token never trained) has a scale near 0: its signs say nothing.
            if (changed & (scale > _NEGLIGIBLE_SCALE)).any():
                raise UserError(
                    f"{key}: the bits of a row that is nearly all of one sign cannot be held by latent weights; "
                    "finetune from the latent checkpoint"
                )
    mark_calibrated(model)
    return model


def _pack_weight(module: BinaryLinear | BinaryEmbedding) -> dict[str, np.ndarray]:
    weight = module.weight.detach()
    granularity = module.weight_scale if isinstance(module, BinaryLinear) else "channel"
    center = WEIGHT_BINARIZERS[getattr(module, "weight_binarizer", "mean_centered")].center
    assert center is not None  # check_packable
    _, scale = weight_statistics(weight, granularity)
    negative: Tensor = weight - center(weight) < 0
    return {
        "weight_bits": pack_bits(negative.cpu().numpy()),
        "weight_scale": scale.flatten().float().cpu().numpy(),
    }


def _head_of(model: PreTrainedModel) -> tuple[str, list[str]]:
    if isinstance(model, BitBertForPreTraining | BitBertForNextSentencePrediction):
        return "nsp", ["is_next", "not_next"]
    if isinstance(model, BitBertForSequenceClassification):
        of_pairs = "pair_" if compares_texts(model.config) else ""
        if model.num_labels == 1:
            return f"{of_pairs}regression", []
        names: Any = model.config.id2label
        return f"{of_pairs}classification", [str(names[index]) for index in range(model.num_labels)]
    raise UserError(
        f"{type(model).__name__} cannot be packed; wanted a pretraining, next-sentence or sequence-classification model"
    )
