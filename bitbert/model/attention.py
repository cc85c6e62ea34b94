"""Self-attention on bits, with BiPFT's low-rank estimators of what binarizing Q, K and V loses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitbert.model.dropout import draw, drop_limit
from bitbert.model.fused import EXACT_IN_BFLOAT16, activation_codes, attend
from bitbert.model.kernels import Kernels, kernels_for, product_dtype
from bitbert.model.linear import Binarizer, BinaryLinear
from bitbert.model.precision import products_as_they_are


class ResidualEstimator(nn.Module):
    """Estimates of the binarization residuals of Q, K and V from the full-precision layer input.

    With Q = B_Q + R_Q, K = B_K + R_K: Q K^T = B_Q B_K^T + [B_Q R_K^T + R_Q B_K^T + R_Q R_K^T]. The bracket is the
    residual polynomial. Rank-r linear maps of the layer input stand for its factors:

        E = q_m k_p^T + q_p k_m^T + q_p k_p^T       (positions x positions)
        r_v = v_p                                    (one scalar a key position, for every channel)

    where _p estimates a residual R and _m a binarized factor B (arXiv 2312.08937). E is added to the scores before
    the division by sqrt(d); (A r_v) is added to every channel of the context. As published, all heads share one set
    of maps; ``num_sets`` gives each head its own. A set's r outputs lie side by side.
    The biases of ``key_residual`` and ``key_binary`` add a constant to each query's scores, which softmax ignores:
    their gradient is zero. They are kept because the published parameters have them.

    Args:
        num_sets: 1, or the number of heads.
    """

    def __init__(self, hidden_size: int, rank: int, num_sets: int) -> None:
        super().__init__()
        self.num_sets = num_sets
        self.query_residual = nn.Linear(hidden_size, num_sets * rank)
        self.key_residual = nn.Linear(hidden_size, num_sets * rank)
        self.query_binary = nn.Linear(hidden_size, num_sets * rank)
        self.key_binary = nn.Linear(hidden_size, num_sets * rank)
        self.value_residual = nn.Linear(hidden_size, num_sets)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, positions, hidden) -> E (batch, sets, positions, positions), r_v (batch, sets, positions, 1).

        Not rounded under autocast: casting the input costs more than these products, and E decides bits.
        """
        with products_as_they_are(hidden_states.device):
            outputs = self._maps(hidden_states.to(self.query_residual.weight.dtype))
            q_p, k_p, q_m, k_m, r_v = (x.unflatten(-1, (self.num_sets, -1)).transpose(1, 2) for x in outputs)
            queries, keys = torch.cat([q_m + q_p, q_p], dim=-1), torch.cat([k_p, k_m], dim=-1)
            return queries @ keys.transpose(-1, -2), r_v

    def _maps(self, x: Tensor) -> Sequence[Tensor]:
        """Outputs of the five maps; one product where their weights are at hand."""
        linears = (self.query_residual, self.key_residual, self.query_binary, self.key_binary, self.value_residual)
        weights = [linear.weight for linear in linears]
        if not all(weight.numel() for weight in weights):  # ZeRO stage 3 fetches them when the modules are called
            return [linear(x) for linear in linears]
        joined = nn.functional.linear(x, torch.cat(weights), torch.cat([linear.bias for linear in linears]))
        return joined.split([len(weight) for weight in weights], dim=-1)


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


def _identity(scores: Tensor) -> Tensor:
    return scores


ATTENTIONS = {"softmax": (_softmax, "unsigned"), "bi": (_identity, "bool"), "bi_strict": (_identity, "strict_bool")}
"""What becomes of the scores before they are binarized, and the kind of binarizer."""


@dataclass(frozen=True)
class _Inputs:
    """What the attended bits are made of.

    Attributes:
        projected: queries, keys and values before they are binarized, (batch, positions, hidden) each.
        residual: E, (batch, sets, positions, positions), or None.
        bias: (batch, 1, 1, positions), or None.
        random, limit: int16 of the scores' shape, and below which of them a bit is dropped; None and 0 for no dropout.
    """

    projected: list[Tensor]
    residual: Tensor | None
    bias: Tensor | None
    random: Tensor | None
    limit: int


@dataclass(frozen=True)
class _Attended:
    """Operands of the last product, in the type it is to run in: codes, and the step that each code stands for.

    Attributes:
        bits: A / a_p, (batch, heads, positions, positions), 0 where dropped.
        values: sign(V), (batch, heads, positions, head_size).
        bit_step, value_step: a_p and a_v, (1,).
    """

    bits: Tensor
    bit_step: Tensor
    values: Tensor
    value_step: Tensor


class BinarySelfAttention(nn.Module):
    """Multi-head self-attention whose four products have 1-bit operands.

        S = (a_q a_k sign(Q) sign(K)^T + E) / sqrt(d) + mask
        A = elastic unsigned binarization of softmax(S), in {0, a_p}
        context = A (a_v sign(V)) + (A r_v) 1^T

    Softmax runs in full precision. Bi-Attention has none: A = 1[S >= 0].
    Dropout acts on the binarized A, never between a probability and its threshold.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size

        def projection() -> BinaryLinear:
            width = self.num_heads * self.head_size
            return BinaryLinear(config.hidden_size, width, kind="signed", weight_scale=config.weight_scale)

        self.query, self.key, self.value = projection(), projection(), projection()
        self.query_binarizer, self.key_binarizer, self.value_binarizer = (Binarizer("signed") for _ in range(3))
        self.weigh, kind = ATTENTIONS[config.attention]
        self.probability_binarizer = Binarizer(kind)
        num_sets = config.num_attention_heads if config.residual_estimators == "per_head" else 1
        rank = config.residual_rank
        self.estimator = ResidualEstimator(config.hidden_size, rank, num_sets) if rank else None
        self.dropout_probability = config.attention_probs_dropout_prob

    def forward(
        self, hidden_states: Tensor, attention_bias: Tensor | None, *, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            hidden_states: (batch, positions, hidden).
            attention_bias: (batch, 1, 1, positions), 0 at text and very negative at padding, or None.

        Returns:
            context (batch, positions, hidden) and, where asked for, the binarized probabilities (batch, heads,
            positions, positions).
        """
        projected = [projection(hidden_states) for projection in (self.query, self.key, self.value)]
        score_residual, value_residual = (None, None) if self.estimator is None else self.estimator(hidden_states)
        inputs = _Inputs(projected, score_residual, attention_bias, *self._draw_dropout(hidden_states))
        kernels = self._kernels_for(hidden_states)
        attended = self._attend(inputs) if kernels is None else self._attend_fused(kernels, inputs)

        # Dropped bits are 0; what is kept grows by 1 / (1 - p) after the product, which stays one of integers.
        bit_step = attended.bit_step
        if inputs.random is not None:
            bit_step = bit_step / (1 - self.dropout_probability)
        values = attended.values
        if value_residual is not None:  # one product: r_v is a channel more of the values
            channel = value_residual.to(values.dtype).expand(*values.shape[:-1], 1)
            values = torch.cat([values, channel], dim=-1)
        with products_as_they_are(values.device):
            product = attended.bits @ values
        context = product[..., : self.head_size] * (bit_step * attended.value_step)
        if value_residual is not None:
            context = context + product[..., self.head_size :] * bit_step
        batch, _, positions, _ = context.shape
        context = context.transpose(1, 2).reshape(batch, positions, -1).to(hidden_states.dtype)
        probabilities = attended.bits * bit_step if output_attentions else None
        return context, probabilities

    def _attend(self, inputs: _Inputs) -> _Attended:
        binarizers = (self.query_binarizer, self.key_binarizer, self.value_binarizer)
        (queries, query_step), (keys, key_step), (values, value_step) = (
            binarizer(self._split_heads(x)) for binarizer, x in zip(binarizers, inputs.projected, strict=True)
        )
        scores = (queries @ keys.transpose(-1, -2)) * (query_step * key_step)
        if inputs.residual is not None:
            scores = scores + inputs.residual
        scores = scores / self.head_size**0.5
        if inputs.bias is not None:
            scores = scores + inputs.bias
        bits, bit_step = self.probability_binarizer(self.weigh(scores))
        if inputs.random is not None:
            bits = bits * (inputs.random >= inputs.limit)
        dtype = product_dtype(bits)
        return _Attended(bits.to(dtype), bit_step, values.to(dtype), value_step)

    def _attend_fused(self, kernels: Kernels, inputs: _Inputs) -> _Attended:
        """The same on the native kernels."""
        projected, positions = inputs.projected, inputs.projected[0].shape[1]
        binarizers = (self.query_binarizer, self.key_binarizer, self.value_binarizer)
        query_codes, key_codes, value_codes = (binarizer.codes for binarizer in binarizers)
        codes = self.probability_binarizer.codes
        of_scores = self.head_size * query_codes.largest * key_codes.largest
        is_exact = max(of_scores, positions * codes.largest * value_codes.largest) <= EXACT_IN_BFLOAT16
        dtype = product_dtype(projected[0]) if is_exact else torch.float32
        steps = [binarizer.step(x) for binarizer, x in zip(binarizers, projected, strict=True)]
        queries, keys, values = (
            self._split_heads(activation_codes(kernels, x, step, binarizer.codes, dtype))
            for binarizer, x, step in zip(binarizers, projected, steps, strict=True)
        )
        bit_step = self.probability_binarizer.step_of(queries.shape[0] * self.num_heads * positions**2)
        bits, weighed = attend(
            kernels,
            queries,
            keys,
            steps[0] * steps[1],
            inputs.residual,
            inputs.bias,
            bit_step,
            codes=codes,
            inverse_root=self.head_size**-0.5,
            random=inputs.random,
            limit=inputs.limit,
        )
        self.probability_binarizer.watch(weighed, bit_step)
        return _Attended(bits, bit_step, values, steps[2])

    def _kernels_for(self, x: Tensor) -> Kernels | None:
        binarizers = (self.query_binarizer, self.key_binarizer, self.value_binarizer, self.probability_binarizer)
        return kernels_for(x) if all(binarizer.fits_kernels for binarizer in binarizers) else None

    def _draw_dropout(self, x: Tensor) -> tuple[Tensor | None, int]:
        """Random numbers of the scores' shape and below which of them a bit is dropped; (None, 0) for no dropout."""
        if not self.training or not self.dropout_probability:
            return None, 0
        batch, positions, _ = x.shape
        shape = torch.Size((batch, self.num_heads, positions, positions))
        return draw(shape, x.device), drop_limit(self.dropout_probability)

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, positions, _ = x.shape
        return x.view(batch, positions, self.num_heads, self.head_size).transpose(1, 2)
