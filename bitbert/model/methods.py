"""What the methods beside BiPFT's change in the modules of the one model: layers of their own, and fixed parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from bitbert.errors import UserError
from bitbert.model.kernels import Kernels
from bitbert.model.linear import Binarizer, BinaryEmbedding, BinaryLinear
from bitbert.model.weights import WEIGHT_BINARIZERS
from bitbert.packable import unpackable


class CodedLinear(BinaryLinear):
    """A :class:`BinaryLinear` whose weights are binarized, or made ternary, by name; with ``split``, by two matrices.

        y = a * (codes(x + m) @ (s_1 C_1 + s_2 C_2)^T) + b

    The second latent matrix ``split_weight`` (out, in) is BinaryBERT's (arXiv 2012.15701): the sum of two binary
    weights has the levels of a ternary one. Both products stay apart, exact integers each.
    """

    split_weight: nn.Parameter | None

    def __init__(self, like: BinaryLinear, weight_binarizer: str, *, split: bool) -> None:
        kind = like.input_binarizer.kind
        super().__init__(like.in_features, like.out_features, kind=kind, weight_scale=like.weight_scale)
        self.weight_binarizer = weight_binarizer
        self.split_weight = nn.Parameter(torch.zeros_like(self.weight)) if split else None

    def _kernels_for(self, x: Tensor) -> Kernels | None:
        return super()._kernels_for(x) if self.split_weight is None else None

    def _kernel_weight(self) -> tuple[Tensor, None, Tensor]:
        codes, scale = self._coded(self.weight)
        return codes, None, scale

    def _multiply(self, codes: Tensor, step: Tensor) -> Tensor:
        weight, scale = self._coded(self.weight)
        y = nn.functional.linear(codes, weight.to(codes.dtype)) * (scale * step)
        if self.split_weight is None:
            return y
        weight, scale = self._coded(self.split_weight)
        return y + nn.functional.linear(codes, weight.to(codes.dtype)) * (scale * step)

    def _coded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return WEIGHT_BINARIZERS[self.weight_binarizer].linear(weight, self.weight_scale)


class CodedEmbedding(BinaryEmbedding):
    """A :class:`BinaryEmbedding` whose rows are binarized by name; with ``split``, the sum of two tables."""

    split_weight: nn.Parameter | None

    def __init__(self, like: BinaryEmbedding, weight_binarizer: str, *, split: bool) -> None:
        super().__init__(like.num_embeddings, like.embedding_dim, padding_idx=like.padding_idx)
        self.weight_binarizer = weight_binarizer
        self.split_weight = nn.Parameter(torch.zeros_like(self.weight)) if split else None

    def forward(self, input_ids: Tensor) -> Tensor:
        binarize = WEIGHT_BINARIZERS[self.weight_binarizer].rows
        tables = [self.weight] if self.split_weight is None else [self.weight, self.split_weight]
        looked_up = [nn.functional.embedding(input_ids, table, self.padding_idx) for table in tables]
        rows = [binarize(row, table.detach().mean()) for row, table in zip(looked_up, tables, strict=True)]
        return rows[0] if len(rows) == 1 else rows[0] + rows[1]


def apply_method(model: nn.Module, config: Any) -> None:
    """Make a freshly built encoder that of its config's method.

    BiT's and BiPFT's layers are what the model is built of; other weight binarizers put their own in their place.
    """
    layer = {"weight_binarizer": config.weight_binarizer, "split": config.split_weights}
    if config.weight_binarizer != "mean_centered" or config.split_weights:
        for name, module in list(model.named_modules()):
            if isinstance(module, BinaryLinear):
                model.set_submodule(name, CodedLinear(module, **layer))
            elif isinstance(module, BinaryEmbedding):
                model.set_submodule(name, CodedEmbedding(module, **layer))
    for module in model.modules():
        if isinstance(module, Binarizer):
            is_bool = module.kind.endswith("bool")
            module.bits = 1 if is_bool else config.activation_bits
            module.steps = "one" if is_bool else config.step_sizes
    freeze_fixed(model, config)


def freeze_fixed(model: nn.Module, config: Any) -> None:
    """Freeze what the method does not learn: steps of 1 or of each call, shifts. The parameter stays 1, or 0."""
    for module in model.modules():
        if isinstance(module, Binarizer):
            module.alpha.requires_grad_(module.steps == "learned")
        elif isinstance(module, BinaryLinear):
            module.shift.requires_grad_(config.input_shift)


def check_packable(config: Any) -> None:
    """Raises:
    UserError: the model cannot be packed, and why.
    """
    reason = unpackable(config.to_dict())
    if reason is not None:
        raise UserError(
            f"a model of method {config.method!r} cannot be packed: {reason}, and the packed format and its "
            "runtime compute with one bit a weight and one bit an activation; keep the latent checkpoint, "
            "or train on with a method and fields that have one"
        )
