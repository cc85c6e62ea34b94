"""Self-attention on bits, with BiPFT's low-rank estimators of what binarizing Q, K and V loses."""

from typing import Any

import torch
from torch import Tensor, nn

from bitbert.model.linear import Binarizer, BinaryLinear


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
        """(batch, positions, hidden) -> E (batch, sets, positions, positions), r_v (batch, sets, positions, 1)."""

        def factor(linear: nn.Linear) -> Tensor:
            return linear(hidden_states).unflatten(-1, (self.num_sets, -1)).transpose(1, 2)

        q_p, k_p = factor(self.query_residual), factor(self.key_residual)
        q_m, k_m = factor(self.query_binary), factor(self.key_binary)
        scores = (q_m + q_p) @ k_p.transpose(-1, -2) + q_p @ k_m.transpose(-1, -2)
        return scores, factor(self.value_residual)


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


def _identity(scores: Tensor) -> Tensor:
    return scores


ATTENTIONS = {"softmax": (_softmax, "unsigned"), "bi": (_identity, "bool"), "bi_strict": (_identity, "strict_bool")}
"""What becomes of the scores before they are binarized, and the kind of binarizer."""


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
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: Tensor, attention_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: (batch, positions, hidden).
            attention_bias: (batch, 1, 1, positions), 0 at text and very negative at padding, or None.

        Returns:
            context (batch, positions, hidden) and the binarized probabilities (batch, heads, positions, positions).
        """
        queries, query_step = self.query_binarizer(self._split_heads(self.query(hidden_states)))
        keys, key_step = self.key_binarizer(self._split_heads(self.key(hidden_states)))
        values, value_step = self.value_binarizer(self._split_heads(self.value(hidden_states)))

        scores = (queries @ keys.transpose(-1, -2)) * (query_step * key_step)
        if self.estimator is not None:
            score_residual, value_residual = self.estimator(hidden_states)
            scores = scores + score_residual
        scores = scores / self.head_size**0.5
        if attention_bias is not None:
            scores = scores + attention_bias
        attended, probability_step = self.probability_binarizer(self.weigh(scores))
        attended = self.dropout(attended)

        context = (attended @ values) * (probability_step * value_step)
        if self.estimator is not None:
            context = context + (attended @ value_residual) * probability_step
        batch, _, positions, _ = context.shape
        return context.transpose(1, 2).reshape(batch, positions, -1), attended * probability_step

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, positions, _ = x.shape
        return x.view(batch, positions, self.num_heads, self.head_size).transpose(1, 2)
