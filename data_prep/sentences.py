"""Documents -> sentences."""

from collections.abc import Iterator


def split_sentences(text: str, language: str) -> list[str]:
    """Sentences of ``text`` by sentencex's rules; white space is folded and nothing but it is dropped."""
    return [folded for sentence in raw_sentences(text, language) if (folded := " ".join(sentence.split()))]


def raw_sentences(text: str, language: str) -> Iterator[str]:
    """The same sentences with the white space that they had; some are nothing but white space."""
    import sentencex

    return sentencex.segment(language, text)
