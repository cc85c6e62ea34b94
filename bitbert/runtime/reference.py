"""The numpy forward pass: what every faster one is held to, and what answers where no library was built.

    linear    y = s_w a_x (K - 2 popcount(x XOR w)) + b          x_bit = [x + shift < 0]
    scores    (a_q a_k (d - 2 popcount(q XOR k)) + E) / sqrt(d)
              Bi-Attention: p_bit = [d - 2 popcount(q XOR k) >= 0]; strict: > 0
    context   a_p a_v (popcount(p) - 2 popcount(p AND v)) + a_p sum_{p_j = 1} r_v[j]    p_bit = [p > a_p / 2]

Products are integers; the scale is applied once, in the order in which the torch model applies it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitbert.errors import UserError
from bitbert.packed import PackedModel, unpack_bits
from bitbert.runtime.elementwise import ACTIVATIONS, layer_norm, softmax
from bitbert.runtime.numpy_bitops import mask_products, pack_words, sign_products
from bitbert.runtime.pairs import pair_features, split_pair


class BitLinear:
    """One packed linear layer; x (n, in) -> y (n, out)."""

    def __init__(self, tensors: dict[str, np.ndarray], name: str, kind: str, dtype: Any) -> None:
        self.words = tensors[f"{name}.weight_bits"].view("<u8")
        self.shift, self.bias = (tensors[f"{name}.{part}"].astype(dtype) for part in ("shift", "bias"))
        self.step = tensors[f"{name}.input_binarizer.alpha"].astype(dtype)
        self.scale = tensors[f"{name}.weight_scale"].astype(dtype) * self.step
        self.unsigned = kind == "unsigned"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        shifted = x + self.shift
        if self.unsigned:
            products = mask_products(pack_words(shifted > self.step / 2), self.words)
        else:
            products = sign_products(pack_words(shifted < 0), self.words, x.shape[-1])
        # Integers times float32 would be float64 in numpy; the model's arithmetic is that of its dtype.
        return products.astype(x.dtype) * self.scale + self.bias


class ReferenceModel:
    """A packed model in numpy.

    Args:
        dtype: of everything between the products. float32 is the format's arithmetic; float64 leaves no
            rounding near thresholds and serves to check exports.
    """

    isa = "numpy"

    def __init__(self, model: PackedModel, dtype: Any = np.float32) -> None:
        self.config = model.config
        self._dtype = dtype
        tensors = model.tensors
        self._floats = {name: tensor.astype(dtype) for name, tensor in tensors.items() if tensor.dtype == np.float32}
        self._word_bits = tensors["bitbert.embeddings.word_embeddings.weight_bits"]
        self._layers = [self._layer_linears(tensors, index) for index in range(self.config.num_hidden_layers)]
        self._pooler = BitLinear(tensors, "bitbert.pooler.dense", "signed", dtype)

    def set_threads(self, num_threads: int) -> None:
        """Nothing here runs in threads; any number from 1 to 256 is accepted, as by the native model."""
        if not 1 <= num_threads <= 256:
            raise UserError(f"number of threads is {num_threads}, wanted 1 to 256")

    def run(
        self, input_ids: Sequence[Any], token_type_ids: Sequence[Any], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """As :meth:`bitbert.runtime.native.NativeModel.run`, in this model's dtype."""
        if "logits" in wanted and self.config.head == "none":
            raise UserError("this checkpoint has no head and gives no logits; ask for pooled or last")
        states, pooled = [], []
        for ids, types in zip(input_ids, token_type_ids, strict=True):
            of_sequence = self._states(*_arrays(ids, types))
            states.append(np.stack(of_sequence))
            pooled.append(self._pool(of_sequence[-1][:1]))
        joined, stacked = np.concatenate(states, axis=1), np.stack(pooled)
        found = {"states": joined, "last": joined[-1], "pooled": stacked}
        if "logits" in wanted:
            seen = stacked
            if self.config.compares_texts:
                pairs = [split_pair(*_arrays(*pair)) for pair in zip(input_ids, token_type_ids, strict=True)]
                first, second = (np.stack([self._mean(pair[place]) for pair in pairs]) for place in (0, 1))
                seen = pair_features(first, second, self.config.layer_norm_eps)
            head = "nsp_head" if self.config.head == "nsp" else "classifier"
            found["logits"] = seen @ self._floats[f"{head}.weight"].T + self._floats[f"{head}.bias"]
        return {name: found[name] for name in wanted}

    def _mean(self, ids: np.ndarray) -> np.ndarray:
        mean: np.ndarray = self._states(ids, np.zeros_like(ids))[-1].mean(axis=0)
        return mean

    def _states(self, ids: np.ndarray, types: np.ndarray) -> list[np.ndarray]:
        config = self.config
        if not 0 < len(ids) <= config.max_position_embeddings:
            raise UserError(f"sequence of {len(ids)} tokens, wanted 1 to {config.max_position_embeddings}")
        for values, what, limit in (
            (ids, "token id", config.vocab_size),
            (types, "token type id", config.type_vocab_size),
        ):
            wrong = values[(values < 0) | (values >= limit)]
            if len(wrong):
                raise UserError(f"{what} {wrong[0]}, wanted 0 to {limit - 1}")
        if len(types) != len(ids):
            raise UserError(f"{len(types)} token type ids for {len(ids)} tokens, wanted as many")
        hidden = self._embed(ids, types)
        states = [hidden]
        for index in range(config.num_hidden_layers):
            hidden = self._layer(index, hidden)
            states.append(hidden)
        return states

    def _layer_linears(self, tensors: dict[str, np.ndarray], index: int) -> dict[str, BitLinear]:
        names = (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention_output",
            "intermediate",
            "output",
        )
        kinds = dict.fromkeys(names, "signed") | {"output": self.config.ffn_input}
        return {name: BitLinear(tensors, f"bitbert.layers.{index}.{name}", kinds[name], self._dtype) for name in names}

    def _embed(self, ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        prefix = "bitbert.embeddings"
        negative = unpack_bits(self._word_bits[ids], self.config.hidden_size)
        scale = self._floats[f"{prefix}.word_embeddings.weight_scale"][ids, None]
        words = np.where(negative, -scale, scale)
        types = self._floats[f"{prefix}.token_type_embeddings.weight"][token_type_ids]
        positions = self._floats[f"{prefix}.position_embeddings.weight"][: len(ids)]
        return self._norm(words + types + positions, f"{prefix}.LayerNorm")

    def _layer(self, index: int, hidden: np.ndarray) -> np.ndarray:
        linears, prefix = self._layers[index], f"bitbert.layers.{index}"
        context = self._attend(index, hidden)
        hidden = self._norm(hidden + linears["attention_output"](context), f"{prefix}.attention_norm")
        expanded = ACTIVATIONS[self.config.hidden_act](linears["intermediate"](hidden))
        return self._norm(hidden + linears["output"](expanded), f"{prefix}.output_norm")

    def _attend(self, index: int, hidden: np.ndarray) -> np.ndarray:
        linears, floats, prefix = self._layers[index], self._floats, f"bitbert.layers.{index}.attention"
        steps = {name: floats[f"{prefix}.{name}_binarizer.alpha"] for name in ("query", "key", "value", "probability")}
        size, root = self.config.head_size, math.sqrt(self.config.head_size)
        negative = {name: linears[f"attention.{name}"](hidden) < 0 for name in ("query", "key", "value")}
        estimates = self._estimate(prefix, hidden) if self.config.residual_rank else None

        context = np.empty_like(hidden)
        for index_of_head in range(self.config.num_attention_heads):
            head = slice(index_of_head * size, (index_of_head + 1) * size)
            queries, keys = pack_words(negative["query"][:, head]), pack_words(negative["key"][:, head])
            scores = sign_products(queries, keys, size).astype(self._dtype) * (steps["query"] * steps["key"])
            if estimates is not None:
                score_residual, value_residual = (both[index_of_head % len(both)] for both in estimates)
                scores = scores + score_residual
            if self.config.attention == "softmax":
                attended = softmax(scores / hidden.dtype.type(root)) > steps["probability"] / 2
            else:
                attended = scores > 0 if self.config.attention == "bi_strict" else scores >= 0
            products = mask_products(pack_words(attended), pack_words(negative["value"][:, head].T))
            context[:, head] = products.astype(self._dtype) * (steps["probability"] * steps["value"])
            if estimates is not None:
                context[:, head] += (attended @ value_residual) * steps["probability"]
        return context

    def _estimate(self, prefix: str, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E (sets, n, n) and r_v (sets, n, 1); there is one set for all heads, or one a head."""

        def factor(name: str) -> np.ndarray:
            weight, bias = (self._floats[f"{prefix}.estimator.{name}.{part}"] for part in ("weight", "bias"))
            rows = hidden @ weight.T + bias
            return rows.reshape(len(hidden), self.config.num_estimator_sets, -1).swapaxes(0, 1)

        q_p, k_p, q_m, k_m = (factor(name) for name in ("query_residual", "key_residual", "query_binary", "key_binary"))
        return (q_m + q_p) @ k_p.swapaxes(1, 2) + q_p @ k_m.swapaxes(1, 2), factor("value_residual")

    def _pool(self, first: np.ndarray) -> np.ndarray:
        pooled = self._pooler(first)
        if self.config.pooler == "residual_norm":
            pooled = self._norm(pooled, "bitbert.pooler.LayerNorm") + first
        return np.tanh(pooled)[0]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self._floats[f"{name}.weight"], self._floats[f"{name}.bias"], self.config.layer_norm_eps)


def _arrays(ids: Any, types: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(ids, dtype=np.int64), np.asarray(types, dtype=np.int64)
