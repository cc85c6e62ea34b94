"""Sentences -> token ids, through a cache of words where that gives the same ids.

WordPiece encodes each word by itself, and words repeat: one dictionary look-up replaces the normaliser, the
pre-tokeniser and the model for all but the first occurrence of a word.
"""

import re
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bitbert.tokenizer import Tokenizer, WordPieceTokenizer

_SENTENCES_PER_CALL = 2048
_WORDS_PER_CALL = 256
# Above it the cache starts anew: a bound on memory (about 200 MiB), reached after some 10^8 tokens.
_MAX_WORDS = 1_000_000
_LONGEST_KEPT_CHARS = 64
# Of a printable ASCII word, BERT's rules make these: each punctuation character stands alone.
_ATOM = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]")


class SentenceEncoder(Protocol):
    """Encodes sentences; white space inside of them counts as one blank."""

    dtype: np.dtype

    def encode(self, sentences: list[str]) -> list[bytes]:
        """Ids of each sentence as the bytes of a little-endian array of ``dtype``."""


def build_encoder(tokenizer: Tokenizer) -> SentenceEncoder:
    """The fastest encoder whose ids equal the tokenizer's."""
    if isinstance(tokenizer, WordPieceTokenizer) and tokenizer.encodes_words_separately:
        return CachedWordEncoder(tokenizer)
    return PlainEncoder(tokenizer)


def id_dtype(vocab_size: int) -> np.dtype:
    """The narrowest little-endian type that holds the ids; the same as in the shards."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class PlainEncoder:
    """The tokenizer itself, for models in which the cut of one word depends on its neighbours."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.dtype = id_dtype(tokenizer.vocab_size)
        self._tokenizer = tokenizer

    def encode(self, sentences: list[str]) -> list[bytes]:
        encoded: list[bytes] = []
        for start in range(0, len(sentences), _SENTENCES_PER_CALL):
            folded = [" ".join(sentence.split()) for sentence in sentences[start : start + _SENTENCES_PER_CALL]]
            encoded.extend(np.array(ids, dtype=self.dtype).tobytes() for ids in self._tokenizer.encode_batch(folded))
        return encoded


class CachedWordEncoder:
    """Word -> bytes of its ids, so that a sentence is one join of look-ups."""

    def __init__(self, tokenizer: WordPieceTokenizer, max_words: int = _MAX_WORDS) -> None:
        self.dtype = id_dtype(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._max_words = max_words
        self._words: dict[str, bytes] = {}
        self._long_words: list[str] = []
        self._has_added_token = re.compile("|".join(map(re.escape, tokenizer.added_tokens))).search

    def encode(self, sentences: list[str]) -> list[bytes]:
        encoded: list[bytes] = []
        for start in range(0, len(sentences), _SENTENCES_PER_CALL):
            encoded.extend(self._encode_chunk(sentences[start : start + _SENTENCES_PER_CALL]))
        return encoded

    def _encode_chunk(self, sentences: list[str]) -> list[bytes]:
        look_up = self._words.__getitem__
        encoded: list[bytes] = []
        unknown: list[tuple[int, list[str]]] = []
        for number, sentence in enumerate(sentences):
            words = sentence.split()
            try:
                encoded.append(b"".join(map(look_up, words)))
            except KeyError:
                encoded.append(b"")
                unknown.append((number, words))
        if unknown:
            self._learn(list(set().union(*(words for _, words in unknown)).difference(self._words)))
            for number, words in unknown:
                encoded[number] = b"".join(map(look_up, words))
            self._forget()
        return encoded

    def _learn(self, words: list[str]) -> None:
        plain = [word for word in words if self._is_plain(word)]
        atoms_of = {word: _ATOM.findall(word) for word in plain}
        atoms = set().union(*atoms_of.values()).difference(self._words)
        self._store(list(atoms), self._tokenizer.encode_atoms)
        for word, found in atoms_of.items():
            self._words[word] = b"".join(map(self._words.__getitem__, found))
        self._store([word for word in words if word not in atoms_of], self._tokenizer.encode_words)
        self._long_words.extend({word for word in (*words, *atoms) if len(word) > _LONGEST_KEPT_CHARS})

    def _is_plain(self, word: str) -> bool:
        return word.isascii() and word.isprintable() and not self._has_added_token(word)

    def _store(self, words: list[str], encode: Callable[[list[str]], tuple[list[int], list[int]]]) -> None:
        for start in range(0, len(words), _WORDS_PER_CALL):
            chunk = words[start : start + _WORDS_PER_CALL]
            ids, counts = encode(chunk)
            packed = np.array(ids, dtype=self.dtype).tobytes()
            ends = (np.cumsum(counts) * self.dtype.itemsize).tolist()
            for word, first, end in zip(chunk, [0, *ends], ends, strict=False):
                self._words[word] = packed[first:end]

    def _forget(self) -> None:
        for word in self._long_words:
            del self._words[word]
        self._long_words.clear()
        if len(self._words) > self._max_words:
            self._words.clear()
