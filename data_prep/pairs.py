"""Next-sentence pairs as in original BERT (Devlin et al., 2018): [CLS] A [SEP] B [SEP].

Consecutive sentences fill a row up to its length. Half of the rows split them into A and the B that follows; in
the other half B is cut from another document, never the same one, and the sentences that B displaced open the
next row. A sentence longer than a row is continued in the next rows, so no token is lost.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bitbert.shards import TokenRow
from bitbert.tokenizer import Tokenizer

from .sentences import TokenDocument

NUM_SPECIAL_TOKENS = 3
IS_NEXT, NOT_NEXT = 0, 1


class PairBuilder:
    """Rows from documents.

    Args:
        documents: all documents that a random B may come from; at least two.
        max_length: tokens a row, [CLS] and two [SEP] included.
        short_sequence_probability: share of rows with a random shorter length, as in BERT.
    """

    def __init__(
        self, documents: Sequence[TokenDocument], tokenizer: Tokenizer, *, max_length: int, short_sequence_probability: float, seed: int
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._room = max_length - NUM_SPECIAL_TOKENS
        self._short_probability = short_sequence_probability
        self._seed = seed

    def rows(self, index: int) -> Iterator[TokenRow]:
        """Rows of document ``index``: a function of the documents, the seed and the index alone."""
        random = np.random.default_rng([self._seed, index])
        room = self._draw_room(random)
        pending = [piece for sentence in self._documents[index].sentences for piece in _pieces(sentence, self._room // 2)]
        pending.reverse()  # a stack: the next sentence is last
        chunk: list[np.ndarray] = []
        while pending:
            chunk.append(pending.pop())
            length = sum(len(piece) for piece in chunk)
            if pending and length + len(pending[-1]) <= room:
                continue
            first, second, label = self._split(chunk, index, room, random)
            if label == NOT_NEXT:  # what B displaced opens the next row
                pending.extend(reversed(chunk[len(first) :]))
            yield self._row(_join(first), second, label)
            chunk, room = [], self._draw_room(random)

    def _split(
        self, chunk: list[np.ndarray], index: int, room: int, random: np.random.Generator
    ) -> tuple[list[np.ndarray], np.ndarray, int]:
        """(A's pieces, B, label) of one row."""
        is_random = random.random() < 0.5
        if len(chunk) == 1 and not is_random:
            if len(chunk[0]) > 1:  # a lone sentence: its second half is what follows its first
                middle = len(chunk[0]) // 2
                return [chunk[0][:middle]], chunk[0][middle:], IS_NEXT
            is_random = True
        first = chunk[: 1 if len(chunk) == 1 else int(random.integers(1, len(chunk)))]
        if not is_random:
            return first, _join(chunk[len(first) :]), IS_NEXT
        return first, self._random_segment(index, room - sum(map(len, first)), random), NOT_NEXT

    def _random_segment(self, index: int, room: int, random: np.random.Generator) -> np.ndarray:
        """Consecutive sentences of another document, from a random one on, cut to ``room`` tokens."""
        other = (index + 1 + int(random.integers(len(self._documents) - 1))) % len(self._documents)
        sentences = self._documents[other].sentences
        start = int(random.integers(len(sentences)))
        return _join(sentences[start:])[: max(1, room)]

    def _draw_room(self, random: np.random.Generator) -> int:
        if random.random() < self._short_probability:
            return int(random.integers(2, self._room + 1))
        return self._room

    def _row(self, first: np.ndarray, second: np.ndarray, label: int) -> TokenRow:
        cls, sep = ([token] for token in (self._tokenizer.cls_id, self._tokenizer.sep_id))
        ids = np.concatenate([cls, first, sep, second, sep]).astype(first.dtype)
        return TokenRow(ids, len(first) + 2, label)


def _pieces(sentence: np.ndarray, longest: int) -> list[np.ndarray]:
    return [sentence[start : start + longest] for start in range(0, len(sentence), longest)]


def _join(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces)
