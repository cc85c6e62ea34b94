"""The deploy side: a packed checkpoint answers, one sequence at a time, from its bits. Never torch.

    linear    y = s_w a_x (K - 2 popcount(x XOR w)) + b          x_bit = [x + shift < 0]
    scores    (a_q a_k (d - 2 popcount(q XOR k)) + E) / sqrt(d)
    context   a_p a_v (popcount(p) - 2 popcount(p AND v)) + a_p sum_{p_j = 1} r_v[j]      p_bit = [p > a_p / 2]

Products are integers; the scale is applied once, in the order in which the torch model applies it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitbert.errors import UserError
from bitbert.packed import PackedConfig, PackedModel, load_packed, unpack_bits
from bitbert.runtime.elementwise import ACTIVATIONS, layer_norm, softmax
from bitbert.runtime.numpy_bitops import mask_products, pack_words, sign_products


@dataclass(frozen=True)
class Prediction:
    """An answer: the label (None for regression), its probability or the score, and the raw logits."""

    label: str | None
    score: float
    logits: list[float]


@dataclass(frozen=True)
class Encoding:
    """Outputs of the encoder for one sequence of n tokens: (n, hidden) states of each depth, and the pooled (hidden,)."""

    hidden_states: list[np.ndarray]
    pooled: np.ndarray


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
        return products * self.scale + self.bias


class Runtime:
    """A packed model that answers. Use :meth:`load`.

    Args:
        dtype: of everything between the products. float32 is the format's arithmetic; float64 leaves no rounding
            near thresholds and serves to check exports.
    """

    def __init__(self, model: PackedModel, dtype: Any = np.float32) -> None:
        self.config: PackedConfig = model.config
        self.tokenizer = model.tokenizer
        self._dtype = dtype
        tensors = model.tensors
        self._floats = {name: tensor.astype(dtype) for name, tensor in tensors.items() if tensor.dtype == np.float32}
        self._word_bits = tensors["bitbert.embeddings.word_embeddings.weight_bits"]
        self._layers = [self._layer_linears(tensors, index) for index in range(self.config.num_hidden_layers)]
        self._pooler = BitLinear(tensors, "bitbert.pooler.dense", "signed", dtype)

    @classmethod
    def load(cls, path: str | Path) -> "Runtime":
        """Read and check a packed checkpoint folder.

        Raises:
            UserError: see :func:`bitbert.packed.load_packed`.
        """
        return cls(load_packed(path))

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
        """Answer each text or pair of texts with the checkpoint's head.

        Raises:
            UserError: the checkpoint has no head.
        """
        return list(self.stream(texts))

    def stream(self, texts: Sequence[str | tuple[str, str]]) -> Iterator[Prediction]:
        """As :meth:`classify`, one answer at a time."""
        for text in texts:
            yield self._predict(self.logits(*self._tokenize(text)))

    def encode(self, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        """Mean of the last layer's token states of each text: (len(texts), hidden)."""
        states = [self.forward(*self._tokenize(text)).hidden_states[-1].mean(axis=0) for text in texts]
        return np.stack(states) if states else np.empty((0, self.config.hidden_size), self._dtype)

    def logits(self, input_ids: Sequence[int], token_type_ids: Sequence[int]) -> np.ndarray:
        """Head output of one sequence with [CLS] and [SEP] in place: (num_outputs,)."""
        if self.config.head == "none":
            raise UserError("this checkpoint has no head to classify with; finetune it with bitbert-finetune, or use encode")
        head = "nsp_head" if self.config.head == "nsp" else "classifier"
        return self._floats[f"{head}.weight"] @ self.forward(input_ids, token_type_ids).pooled + self._floats[f"{head}.bias"]

    def forward(self, input_ids: Sequence[int], token_type_ids: Sequence[int]) -> Encoding:
        """Run the encoder on one unpadded sequence of at most ``max_position_embeddings`` ids.

        Raises:
            UserError: the sequence is empty or too long, or an id is outside the vocabulary.
        """
        ids = np.asarray(input_ids, dtype=np.int64)
        if not 0 < len(ids) <= self.config.max_position_embeddings:
            raise UserError(f"sequence of {len(ids)} tokens, wanted 1 to {self.config.max_position_embeddings}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UserError(f"token ids {ids.min()} to {ids.max()}, wanted 0 to {self.config.vocab_size - 1}")
        hidden = self._embed(ids, np.asarray(token_type_ids, dtype=np.int64))
        states = [hidden]
        for index in range(self.config.num_hidden_layers):
            hidden = self._layer(index, hidden)
            states.append(hidden)
        return Encoding(states, self._pool(hidden[:1]))

    def _tokenize(self, text: str | tuple[str, str]) -> tuple[list[int], list[int]]:
        first, second = (text, None) if isinstance(text, str) else text
        return self.tokenizer.encode_pair(first, second, self.config.max_length)

    def _predict(self, logits: np.ndarray) -> Prediction:
        values = [float(value) for value in logits]
        if self.config.head == "regression":
            return Prediction(None, values[0], values)
        probabilities = softmax(logits[None])[0]
        best = int(probabilities.argmax())
        return Prediction(self.config.labels[best], float(probabilities[best]), values)

    def _layer_linears(self, tensors: dict[str, np.ndarray], index: int) -> dict[str, BitLinear]:
        names = ("attention.query", "attention.key", "attention.value", "attention_output", "intermediate", "output")
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
        score_residual, value_residual = self._estimate(prefix, hidden) if self.config.residual_rank else (None, None)

        context = np.empty_like(hidden)
        for start in range(0, self.config.hidden_size, size):
            head = slice(start, start + size)
            queries, keys = pack_words(negative["query"][:, head]), pack_words(negative["key"][:, head])
            scores = sign_products(queries, keys, size) * (steps["query"] * steps["key"])
            if score_residual is not None:
                scores = scores + score_residual
            attended = softmax(scores / hidden.dtype.type(root)) > steps["probability"] / 2
            products = mask_products(pack_words(attended), pack_words(negative["value"][:, head].T))
            context[:, head] = products * (steps["probability"] * steps["value"])
            if value_residual is not None:
                context[:, head] += (attended @ value_residual) * steps["probability"]
        return context

    def _estimate(self, prefix: str, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def linear(name: str) -> np.ndarray:
            weight, bias = (self._floats[f"{prefix}.estimator.{name}.{part}"] for part in ("weight", "bias"))
            return hidden @ weight.T + bias

        q_p, k_p, q_m, k_m = (linear(name) for name in ("query_residual", "key_residual", "query_binary", "key_binary"))
        return (q_m + q_p) @ k_p.T + q_p @ k_m.T, linear("value_residual")

    def _pool(self, first: np.ndarray) -> np.ndarray:
        pooled = self._pooler(first)
        if self.config.pooler == "residual_norm":
            pooled = self._norm(pooled, "bitbert.pooler.LayerNorm") + first
        return np.tanh(pooled)[0]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self._floats[f"{name}.weight"], self._floats[f"{name}.bias"], self.config.layer_norm_eps)
