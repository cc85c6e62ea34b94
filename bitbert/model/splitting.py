"""BinaryBERT's two changes of a model (arXiv 2012.15701): half the width before, ternary weights split in two after.

A half-width ternary model is trained first; every ternary weight is then written as the sum of two binary ones, which
keeps the function, and the model trains on. Two bits a weight at half the width are as many as one at the full width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitbert.errors import UserError
from bitbert.model.configuration import BitBertConfig
from bitbert.model.methods import CodedEmbedding, CodedLinear
from bitbert.model.weights import ternary_codes
from bitbert.presets import preset_fields

_SPLIT_FIELDS = ("weight_binarizer", "split_weights", "method")


def half_width(tensors: Mapping[str, Tensor], config: BitBertConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Half of the heads and of the inner units of a full-precision BERT; the hidden size stays (DynaBERT's width 0.5).

    Kept are those whose outgoing weights are largest in norm, in their old order. DynaBERT ranks by the loss instead,
    which needs data.

    Args:
        tensors: state dict of HF's BERT, with or without the prefix ``bert.``; heads of tasks pass through.
        config: the full-width shape.

    Returns:
        the smaller state dict, and the shape fields that change with it.

    Raises:
        UserError: the number of heads or of inner units is odd.
    """
    heads, inner = config.num_attention_heads, config.intermediate_size
    if heads % 2 or inner % 2:
        raise UserError(f"{heads} heads and {inner} inner units have no half; give a BERT with even numbers")
    kept = dict(tensors)
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    for index in range(config.num_hidden_layers):
        layer = f"{prefix}encoder.layer.{index}."
        strength = tensors[f"{layer}attention.output.dense.weight"].unflatten(1, (heads, -1)).norm(dim=(0, 2))
        rows = (_largest_half(strength)[:, None] * config.head_size + torch.arange(config.head_size)).flatten()
        for name in ("query", "key", "value"):
            _take(kept, f"{layer}attention.self.{name}", rows, bias=True)
        kept[f"{layer}attention.output.dense.weight"] = tensors[f"{layer}attention.output.dense.weight"][:, rows]
        units = _largest_half(tensors[f"{layer}output.dense.weight"].norm(dim=0))
        _take(kept, f"{layer}intermediate.dense", units, bias=True)
        kept[f"{layer}output.dense.weight"] = tensors[f"{layer}output.dense.weight"][:, units]
    fields = {
        "num_attention_heads": heads // 2,
        "attention_head_size": config.head_size,
        "intermediate_size": inner // 2,
    }
    return kept, fields


def _largest_half(strength: Tensor) -> Tensor:
    return strength.topk(len(strength) // 2).indices.sort().values


def _take(tensors: dict[str, Tensor], name: str, rows: Tensor, *, bias: bool) -> None:
    for part in ("weight", "bias") if bias else ("weight",):
        tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][rows]


@torch.no_grad()
def split_ternary(model: PreTrainedModel) -> PreTrainedModel:
    """Ternary weight splitting: a model of binary weights with the same function, to be trained on.

    Everything but weights and method is the ternary model's: activations, steps, biases, norms, head.

    Raises:
        UserError: the weights are not ternary, or a row cannot be split.
    """
    source = model.config
    if source.weight_binarizer != "ternary":
        raise UserError(f"weights are {source.weight_binarizer}, wanted ternary; train with method ternarybert first")
    changed = {name: preset_fields("binarybert")[name] for name in _SPLIT_FIELDS}
    split: Any = type(model)(BitBertConfig(**{**source.to_diff_dict(), **changed}))
    split.to(next(model.parameters()).dtype)
    missing, unexpected = split.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith(".split_weight") for name in missing)
    for name, module in split.named_modules():
        if isinstance(module, CodedLinear | CodedEmbedding):
            assert module.split_weight is not None
            granularity = module.weight_scale if isinstance(module, CodedLinear) else "channel"
            first, second = split_weight(module.weight, granularity, name)
            module.weight.copy_(first)
            module.split_weight.copy_(second)
    split.train(model.training)
    return split


def split_weight(weight: Tensor, weight_scale: str, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Latent weights w -> w_1 + w_2 = w whose binary values s sign(w_1) + s sign(w_2) are w's ternary ones.

    Where the ternary value is not 0, w_1 = a w and w_2 = (1 - a) w; where it is 0 and w >= 0, w_1 = b + w and w_2 = -b;
    where it is 0 and w < 0, w_1 = b and w_2 = w - b. With sums over |w| of the three sets, S, P and N of them, n
    weights and z zeros in all, both means of |w_i| are half the ternary scale t when

        a = (S + N - P) / (2 S)        b = (n t - S - P - N) / (2 z)

    (BinaryBERT, section 3.2). The sums run over the matrix, or over each row with ``weight_scale="channel"``.

    Raises:
        UserError: a is not between 0 and 1: nearly all small weights have one sign.
    """
    rows = weight if weight_scale == "channel" else weight.reshape(1, -1)
    codes, scale = ternary_codes(rows, "channel")
    magnitude, kept, positive = rows.abs(), codes != 0, rows >= 0

    def total(chosen: Tensor) -> Tensor:
        return (magnitude * chosen).sum(dim=1, keepdim=True)

    kept_sum, positive_sum, negative_sum = total(kept), total(~kept & positive), total(~kept & ~positive)
    smallest = torch.finfo(rows.dtype).tiny
    share = torch.where(
        kept_sum > 0, (kept_sum + negative_sum - positive_sum) / (2 * kept_sum.clamp(min=smallest)), 0.5
    )
    if not ((share > 0) & (share < 1)).all():
        raise UserError(
            f"{name}: a row's small weights have nearly all one sign and cannot be split into two binary weights; "
            "train the ternary model longer"
        )
    num_zeros = (~kept).sum(dim=1, keepdim=True).clamp(min=1)
    offset = (rows.shape[1] * scale - kept_sum - positive_sum - negative_sum) / (2 * num_zeros)
    offset = offset.clamp(min=smallest)
    first = torch.where(kept, share * rows, torch.where(positive, offset + rows, offset))
    second = torch.where(kept, (1 - share) * rows, torch.where(positive, -offset, rows - offset))
    return first.reshape(weight.shape), second.reshape(weight.shape)
