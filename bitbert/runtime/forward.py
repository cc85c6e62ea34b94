"""A packed checkpoint that answers: texts or token ids in, labels, logits or embeddings out. Never torch."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from bitbert.errors import UserError
from bitbert.packed import PackedConfig, PackedModel, load_packed
from bitbert.runtime.bitops import ISA_VARIABLE, NUMPY, choose_isa
from bitbert.runtime.elementwise import softmax
from bitbert.runtime.native import NativeModel
from bitbert.runtime.pairs import pair_features

if TYPE_CHECKING:
    from bitbert.runtime.reference import ReferenceModel

Text = str | tuple[str, str]
"""A text, or the two texts of a pair."""
Tokens = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
Pooling = Literal["mean", "first", "pooler"]

BATCH_TOKENS = 1024
"""Tokens that run together: enough to keep the kernels busy, few enough to stay near the caches."""


@dataclass(frozen=True)
class Prediction:
    """An answer: the label (None for regression), its probability or the score, and the raw logits."""

    label: str | None
    score: float
    logits: list[float]


@dataclass(frozen=True)
class Encoding:
    """Outputs for one sequence of n tokens: states (n, hidden) of each depth, pooled (hidden,)."""

    hidden_states: list[np.ndarray]
    pooled: np.ndarray


class Runtime:
    """A packed model that answers. Use :meth:`load`.

    Sequences of different lengths run together, end to end, so that batches cost no padding. Answers do not
    depend on what else is in the batch, nor on the number of threads.

    Args:
        dtype: of everything between the products. float32 is the format's arithmetic and what the native
            kernels do; float64 runs in numpy and leaves no rounding near thresholds.
        isa: instruction set to force, ``"numpy"`` included; None reads BITBERT_ISA, else takes the fastest.
        num_threads: 1 to 256.

    Raises:
        UserError: the instruction set is not available here, or the number of threads is out of range.
    """

    def __init__(
        self, model: PackedModel, dtype: Any = np.float32, *, isa: str | None = None, num_threads: int = 1
    ) -> None:
        self.config: PackedConfig = model.config
        self.tokenizer = model.tokenizer
        chosen = choose_isa(isa)
        if chosen == NUMPY and isa is None and ISA_VARIABLE not in os.environ:
            warnings.warn(
                f"no native library was built, so numpy answers, far more slowly: install a C compiler "
                f"(GCC or clang) and then bitbert again, or set {ISA_VARIABLE}={NUMPY} to be content",
                stacklevel=2,
            )
        self._model = _build(model, dtype, chosen)
        parts = ("classifier.weight", "classifier.bias") if self.config.compares_texts else ()
        self._pair_head = [model.tensors[part].astype(np.float32) for part in parts]
        self._model.set_threads(num_threads)

    @classmethod
    def load(cls, path: str | Path, *, isa: str | None = None, num_threads: int = 1) -> "Runtime":
        """Read and check a packed checkpoint, by folder or by the name of a released one.

        Raises:
            UserError: see :func:`bitbert.packed.load_packed` and the class.
        """
        return cls(load_packed(path), isa=isa, num_threads=num_threads)

    @property
    def isa(self) -> str:
        """The instruction set in use; ``"numpy"`` without the native library."""
        return self._model.isa

    def classify(self, texts: Iterable[Text]) -> list[Prediction]:
        """Answer each text or pair of texts with the checkpoint's head.

        Raises:
            UserError: the checkpoint has no head.
        """
        return list(self.stream(texts))

    def stream(self, texts: Iterable[Text]) -> Iterator[Prediction]:
        """As :meth:`classify`, but texts are read and answers given batch by batch, in order."""
        self._require_head()
        for batch in _batches(self._tokenize(self._asked(text)) for text in texts):
            for logits in self._run(batch, "logits"):
                yield self._predict(logits)

    def encode(self, inputs: Iterable[Text | Sequence[int]], *, pooling: Pooling = "mean") -> np.ndarray:
        """One vector for each text, pair of texts or sequence of token ids.

        Args:
            inputs: token ids have [CLS] and [SEP] in place; their token types are all 0.
            pooling: ``"mean"`` of the last layer's token states, the ``"first"`` token's state, or the
                ``"pooler"``'s output.

        Returns:
            float32 (number of inputs, hidden).

        Raises:
            UserError: there is no such pooling, or an input is none of these or too long.
        """
        if pooling not in get_args(Pooling):
            raise UserError(f"pooling {pooling!r}, wanted one of {', '.join(get_args(Pooling))}")
        vectors: list[np.ndarray] = []
        for batch in _batches(self._tokens(item) for item in inputs):
            if pooling == "pooler":
                vectors.extend(self._run(batch, "pooled"))
                continue
            ends = np.cumsum([len(ids) for ids, _ in batch])
            for states in np.split(self._run(batch, "last"), ends[:-1]):
                vectors.append(states.mean(axis=0) if pooling == "mean" else states[0])
        return np.stack(vectors) if vectors else np.empty((0, self.config.hidden_size), np.float32)

    def compare(self, first: np.ndarray, second: np.ndarray) -> list[Prediction]:
        """As :meth:`classify`, of pairs whose texts :meth:`encode` has turned into vectors (``pooling="mean"``).

        A text need be encoded once, however many others it is compared with.

        Args:
            first, second: (pairs, hidden) each; row i of both is pair i.

        Raises:
            UserError: the checkpoint's head is not for texts that are encoded apart, or the shapes are others.
        """
        if not self.config.compares_texts:
            raise UserError(
                f"this checkpoint has head {self.config.head!r}, wanted one for pairs; finetune with pairs=bi_encoder"
            )
        if first.shape != second.shape or first.shape[1:] != (self.config.hidden_size,):
            raise UserError(
                f"vectors of shapes {first.shape} and {second.shape}, wanted (pairs, {self.config.hidden_size}) twice"
            )
        weight, bias = self._pair_head
        seen = pair_features(first.astype(np.float32), second.astype(np.float32), self.config.layer_norm_eps)
        return [self._predict(logits) for logits in seen @ weight.T + bias]

    def logits(self, input_ids: Sequence[int], token_type_ids: Sequence[int]) -> np.ndarray:
        """Head output of one sequence with [CLS] and [SEP] in place: (num_outputs,).

        Raises:
            UserError: the checkpoint has no head; and as :meth:`forward`.
        """
        self._require_head()
        found: np.ndarray = self._run([(_integers(input_ids), _integers(token_type_ids))], "logits")[0]
        return found

    def forward(self, input_ids: Sequence[int], token_type_ids: Sequence[int]) -> Encoding:
        """Run the encoder on one sequence of at most ``max_position_embeddings`` ids.

        Raises:
            UserError: the sequence is empty or too long, or an id is no integer or outside the vocabulary.
        """
        outputs = self._model.run([_integers(input_ids)], [_integers(token_type_ids)], ("states", "pooled"))
        return Encoding(list(outputs["states"]), outputs["pooled"][0])

    def _run(self, batch: Sequence[Tokens], wanted: str) -> np.ndarray:
        ids, types = zip(*batch, strict=True)
        return self._model.run(ids, types, (wanted,))[wanted]

    def _require_head(self) -> None:
        if self.config.head == "none":
            raise UserError("this checkpoint has no head to classify with; use encode, or finetune it first")

    def _asked(self, text: Text) -> Text:
        if self.config.compares_texts and isinstance(text, str):
            raise UserError(f"text {text!a:.80} is alone, and this checkpoint compares two texts; give it a second one")
        return text

    def _tokens(self, item: Text | Sequence[int]) -> Tokens:
        if isinstance(item, str) or (isinstance(item, tuple) and item and isinstance(item[0], str)):
            return self._tokenize(item)
        ids = _integers(item)
        return ids, np.zeros_like(ids)

    def _tokenize(self, text: Text) -> Tokens:
        first, second = (text, None) if isinstance(text, str) else _pair(text)
        try:
            f"{first}{second}".encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text {text!a:.80} holds bytes that are not UTF-8; convert it first") from error
        return self.tokenizer.encode_pair(first, second, self.config.max_length)

    def _predict(self, logits: np.ndarray) -> Prediction:
        values = [float(value) for value in logits]
        if not self.config.labels:
            return Prediction(None, values[0], values)
        probabilities = softmax(logits[None])[0]
        best = int(probabilities.argmax())
        return Prediction(self.config.labels[best], float(probabilities[best]), values)


def _pair(texts: Any) -> tuple[str, str]:
    try:
        first, second = texts
    except (TypeError, ValueError):
        first = second = None
    if not isinstance(first, str) or not isinstance(second, str):
        raise UserError(f"text {texts!a:.80}, wanted a string or a pair of strings")
    return first, second


def _integers(ids: Any) -> np.ndarray:
    """One sequence of ids, (n,) of an integer type."""
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of different lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UserError(f"token ids {ids!a:.80}, wanted one sequence of integers")
    return array.astype(np.int64)


def _build(model: PackedModel, dtype: Any, isa: str) -> "NativeModel | ReferenceModel":
    if isa != NUMPY and np.dtype(dtype) == np.float32:
        return NativeModel(model.config, model.tensors, isa)
    from bitbert.runtime.reference import ReferenceModel

    return ReferenceModel(model, dtype)


def _batches(items: Iterable[Tokens]) -> Iterator[list[Tokens]]:
    """Consecutive sequences of at most BATCH_TOKENS tokens together, but at least one."""
    batch: list[Tokens] = []
    num_tokens = 0
    for item in items:
        if batch and num_tokens + len(item[0]) > BATCH_TOKENS:
            yield batch
            batch, num_tokens = [], 0
        batch.append(item)
        num_tokens += len(item[0])
    if batch:
        yield batch
