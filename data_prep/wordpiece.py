"""Learning a WordPiece vocabulary, with one answer for one text.

Start from characters (``##`` marks those inside of a word) and merge the most frequent pair of neighbours
until the vocabulary is full. Ties, which decide the outcome of other trainers by the order of a hash table,
go to the pair that comes first in code point order; counts are integers; nothing depends on the order of the
words.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from bitbert.errors import UserError

INSIDE = "##"
_LONGEST_WORD_CHARS = 100  # BERT's limit: longer words are unknown whatever the vocabulary
_MAX_ALPHABET = 1000

Pair = tuple[str, str]


def learn_vocabulary(
    words: Mapping[str, int], *, special_tokens: Sequence[str], vocab_size: int, min_frequency: int
) -> list[str]:
    """Tokens in the order of their ids: special tokens, the alphabet, and merged tokens as they were found.

    Args:
        words: word -> count.
        min_frequency: pairs that occur less often are not merged, so the vocabulary may stay smaller.

    Raises:
        UserError: the special tokens and the alphabet alone exceed ``vocab_size``, or there are no words.
    """
    characters = Counter[str]()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    kept = set(sorted(characters, key=lambda character: (-characters[character], character))[:_MAX_ALPHABET])
    usable = {
        word: count for word, count in words.items() if len(word) <= _LONGEST_WORD_CHARS and kept.issuperset(word)
    }
    if not usable:
        raise UserError("the corpus has no word after cleaning; check the paths, the text field and the clean section")
    merges = _Merges(usable)
    tokens = [
        *special_tokens,
        *sorted({symbol for symbols in merges.words for symbol in symbols} - set(special_tokens)),
    ]
    if len(tokens) > vocab_size:
        raise UserError(
            f"vocab_size={vocab_size} is below the {len(tokens)} special tokens and characters of this corpus; "
            "raise vocab_size, or name the wanted scripts in clean.scripts"
        )
    known = set(tokens)
    while len(tokens) < vocab_size and (pair := merges.pop_best(min_frequency)):
        merged = merges.apply(pair)
        if merged not in known:  # two ways may lead to one token: a+bc and ab+c
            known.add(merged)
            tokens.append(merged)
    return tokens


class _Merges:
    """The corpus as words of symbols, with the counts of neighbouring pairs kept up to date."""

    def __init__(self, words: Mapping[str, int]) -> None:
        ordered = sorted(words)
        self.words = [[word[0], *(INSIDE + character for character in word[1:])] for word in ordered]
        self._counts = [words[word] for word in ordered]
        self._pairs: Counter[Pair] = Counter()
        self._places: dict[Pair, set[int]] = defaultdict(set)
        for number, symbols in enumerate(self.words):
            for pair in pairwise(symbols):
                self._pairs[pair] += self._counts[number]
                self._places[pair].add(number)
        self._heap = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._heap)

    def pop_best(self, min_frequency: int) -> Pair | None:
        """The most frequent pair, the first in code point order of several; None below ``min_frequency``."""
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            if -negative == self._pairs.get(pair):  # else the count has changed since, and a newer entry is there
                return pair if -negative >= min_frequency else None
        return None

    def apply(self, pair: Pair) -> str:
        """Merge the pair in all words and return the merged symbol."""
        merged = pair[0] + pair[1].removeprefix(INSIDE)
        changed: set[Pair] = set()
        for number in self._places.pop(pair):
            symbols, count = self.words[number], self._counts[number]
            replaced = _merge(symbols, pair, merged)
            for old in pairwise(symbols):
                self._pairs[old] -= count
                changed.add(old)
            for new in pairwise(replaced):
                self._pairs[new] += count
                self._places[new].add(number)
                changed.add(new)
            self.words[number] = replaced
        del self._pairs[pair]
        for other in changed - {pair}:
            if count := self._pairs[other]:
                heapq.heappush(self._heap, (-count, other))
        return merged


def _merge(symbols: list[str], pair: Pair, merged: str) -> list[str]:
    replaced: list[str] = []
    for symbol in symbols:
        if replaced and symbol == pair[1] and replaced[-1] == pair[0]:
            replaced[-1] = merged
        else:
            replaced.append(symbol)
    return replaced
