"""Embeddings, encoder layer and pooler: vanilla post-LN BERT around the binary parts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bitbert.model.attention import BinarySelfAttention
from bitbert.model.dropout import Dropout
from bitbert.model.fused import fused_gelu
from bitbert.model.kernels import kernels_for
from bitbert.model.linear import BinaryEmbedding, BinaryLinear

_INVERSE_SQRT_2 = math.sqrt(0.5)


class _Gelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.special.erfc(x * -_INVERSE_SQRT_2) * 0.5

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return gradient * (0.5 * torch.special.erfc(x * -_INVERSE_SQRT_2) + x * density)


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x), computed with erfc so that the tail keeps its sign.

    The usual 0.5 x (1 + erf(x / sqrt(2))) rounds to -0 below x = -5.4 in float32, where whether 1 + erf is 0 or
    6e-8 depends on the library. Its sign is then binarized: a rounding error would decide a bit.
    """
    kernels = kernels_for(x)
    return _Gelu.apply(x) if kernels is None else fused_gelu(kernels, x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": nn.functional.relu}


class Embeddings(nn.Module):
    """Binary word rows + full-precision position and type rows, then LayerNorm and dropout."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.word_embeddings = BinaryEmbedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """input_ids, token_type_ids (batch, positions), int64 -> (batch, positions, hidden)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        summed = (
            self.word_embeddings(input_ids)
            + self.token_type_embeddings(token_type_ids)
            + self.position_embeddings(positions)
        )
        return self.dropout(self.LayerNorm(summed))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block, each with its residual connection and LayerNorm after it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        scale = {"weight_scale": config.weight_scale}
        self.attention = BinarySelfAttention(config)
        width = config.num_attention_heads * config.head_size
        self.attention_output = BinaryLinear(width, hidden, kind="signed", **scale)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = BinaryLinear(hidden, inner, kind="signed", **scale)
        self.hidden_act = config.hidden_act
        self.output = BinaryLinear(inner, hidden, kind=config.ffn_input, **scale)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: Tensor, attention_bias: Tensor | None, *, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, positions, hidden) -> the same shape, and the binarized attention probabilities if asked for."""
        context, attention = self.attention(hidden_states, attention_bias, output_attentions=output_attentions)
        hidden_states = self.attention_norm(hidden_states + self.dropout(self.attention_output(context)))
        expanded = self.intermediate(hidden_states)
        if isinstance(self.output, BinaryLinear) and self.output.takes_activation(expanded):
            projected = self.output(expanded, after=self.hidden_act)
        else:
            projected = self.output(ACTIVATIONS[self.hidden_act](expanded))
        return self.output_norm(hidden_states + self.dropout(projected)), attention


class Pooler(nn.Module):
    """[CLS] state -> pooled output: tanh(BinLinear(x)), or BiPFT's tanh(LN(BinLinear(x)) + x)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = BinaryLinear(
            config.hidden_size, config.hidden_size, kind="signed", weight_scale=config.weight_scale
        )
        residual = config.pooler == "residual_norm"
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if residual else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, positions, hidden) -> (batch, hidden)."""
        first = hidden_states[:, 0]
        pooled = self.dense(first)
        if self.LayerNorm is not None:
            pooled = self.LayerNorm(pooled) + first
        return torch.tanh(pooled)


class MaskedLMHead(nn.Module):
    """Full-precision transform and decoder; the decoder's weight is tied to the latent word table."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.mlm_head_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> logits (..., vocabulary)."""
        return self.decoder(self.LayerNorm(self.activation(self.dense(hidden_states))))
