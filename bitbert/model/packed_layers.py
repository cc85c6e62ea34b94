"""Linear layer and embedding whose weights stay bits, in place of those that train."""

import torch
from torch import Tensor, nn

from bitbert.model.binarize import MIN_STEP
from bitbert.model.linear import Binarizer, BinaryEmbedding, BinaryLinear
from bitbert.model.packed_ops import packed_embedding, packed_linear
from bitbert.packed import row_bytes


class PackedLinear(nn.Module):
    """A :class:`BinaryLinear` that keeps 1 bit a weight; inference only.

    Tensors have the packed checkpoint's names: ``weight_bits`` uint8 (out, row bytes), ``weight_scale`` (1,) or
    (out,), ``bias`` (out,), ``shift`` (in,) and the input binarizer's ``alpha`` (1,).
    """

    weight_bits: Tensor
    weight_scale: Tensor
    bias: Tensor
    shift: Tensor

    def __init__(self, in_features: int, out_features: int, *, kind: str, weight_scale: str) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        num_scales = out_features if weight_scale == "channel" else 1
        self.register_buffer("weight_bits", torch.empty(out_features, row_bytes(in_features), dtype=torch.uint8))
        for name, size in (("weight_scale", num_scales), ("bias", out_features), ("shift", in_features)):
            self.register_parameter(name, nn.Parameter(torch.empty(size), requires_grad=False))
        self.input_binarizer = Binarizer(kind)
        self.input_binarizer.alpha.requires_grad_(False)

    @classmethod
    def like(cls, linear: BinaryLinear) -> "PackedLinear":
        """An empty layer of the same shape and kind."""
        return cls(
            linear.in_features,
            linear.out_features,
            kind=linear.input_binarizer.kind,
            weight_scale=linear.weight_scale,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        step = self.input_binarizer.alpha.clamp(min=MIN_STEP)
        mask = self.input_binarizer.kind == "unsigned"
        return packed_linear(x, self.weight_bits, self.weight_scale, self.bias, self.shift, step, mask).to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class PackedEmbedding(nn.Module):
    """A :class:`BinaryEmbedding` that keeps 1 bit a weight and one scale a row; inference only."""

    weight_bits: Tensor
    weight_scale: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.register_buffer("weight_bits", torch.empty(num_embeddings, row_bytes(embedding_dim), dtype=torch.uint8))
        self.weight_scale = nn.Parameter(torch.empty(num_embeddings), requires_grad=False)

    @classmethod
    def like(cls, embedding: BinaryEmbedding) -> "PackedEmbedding":
        """An empty table of the same shape."""
        return cls(embedding.num_embeddings, embedding.embedding_dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (batch, positions) -> rows (batch, positions, hidden)."""
        rows = packed_embedding(input_ids, self.weight_bits, self.weight_scale, self.embedding_dim)
        return rows.to(self.weight_scale.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
