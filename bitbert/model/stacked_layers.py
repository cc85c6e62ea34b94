"""How transformers reads a packed checkpoint's file, which holds each kind of tensor of all layers as one tensor."""

import re
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter

_OF_FIRST_LAYER = re.compile(r"(?:^|\.)layers\.0\.(.+)$")


class UnstackLayers(ConversionOps):
    """One tensor (layers, ...) -> the tensor of each layer."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **_: Any
    ) -> dict[str, list[Tensor]]:
        (stacked,) = (_single(tensors) for tensors in input_dict.values())
        return {name: [layer] for name, layer in zip(target_patterns, stacked.unbind(), strict=True)}

    @property
    def reverse_op(self) -> "StackLayers":
        return StackLayers()


class StackLayers(ConversionOps):
    """The tensor of each layer -> one tensor (layers, ...)."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **_: Any
    ) -> dict[str, list[Tensor]]:
        return {target_patterns[0]: [torch.stack([_single(input_dict[name]) for name in source_patterns])]}

    @property
    def reverse_op(self) -> UnstackLayers:
        return UnstackLayers()


def layer_conversions(model: PreTrainedModel) -> list[WeightConverter]:
    """A conversion for each kind of tensor that the model's layers have."""
    num_layers = model.config.num_hidden_layers
    kinds = [found[1] for name in model.state_dict() if (found := _OF_FIRST_LAYER.search(name))]
    return [
        WeightConverter(f"layers.{kind}", [f"layers.{index}.{kind}" for index in range(num_layers)], [UnstackLayers()])
        for kind in kinds
    ]


def _single(tensors: Any) -> Tensor:
    tensor: Tensor = tensors[0] if isinstance(tensors, list) else tensors
    return tensor
