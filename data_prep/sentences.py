"""Documents -> tokenised sentences."""

from dataclasses import dataclass

import numpy as np

from bitbert.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenDocument:
    """The sentences of one document as id arrays, in order; no sentence is empty."""

    sentences: list[np.ndarray]


def split_sentences(text: str, language: str) -> list[str]:
    """Sentences of ``text`` by sentencex's rules; white space is folded and nothing but it is dropped."""
    import sentencex

    return [folded for sentence in sentencex.segment(language, text) if (folded := " ".join(sentence.split()))]


def tokenize_document(text: str, tokenizer: Tokenizer, language: str) -> TokenDocument:
    """Split and encode one document; ids are uint16 where the vocabulary allows."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    encoded = tokenizer.encode_batch(split_sentences(text, language))
    return TokenDocument([np.array(ids, dtype=dtype) for ids in encoded if ids])
