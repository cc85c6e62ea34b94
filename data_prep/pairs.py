"""Where rows begin and end: next-sentence pairs as in original BERT (Devlin et al., 2018), or single segments.

Consecutive sentences fill a row up to its length. For pairs, a border between two of them cuts the row into A
and the B that follows; in half of the rows B comes from another document instead, never the same one, and the
sentences that B displaced open the next row. Where BERT truncates a row that has grown too long, here the
rest of the sentence opens the next row: each token of a document is in exactly one row as its own (and in any
number of rows as a random B).
"""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

IS_NEXT, NOT_NEXT = 0, 1


@dataclass(frozen=True, slots=True)
class RowSpan:
    """One row as two ranges of the shard's ids; B is empty where rows are single segments."""

    first_a: int
    end_a: int
    first_b: int
    end_b: int
    label: int


@dataclass
class RowBuilder:
    """Cuts documents into rows. A document is given as its edges: its sentences' borders, both ends included.

    Attributes:
        room: ids a row, special tokens not counted; at least 2.
        short_probability: share of rows that are filled to a random shorter length only.
        stream: the source of chance; only its ``random()`` is used, whose values Python promises to keep.
    """

    room: int
    short_probability: float
    stream: random.Random
    _surplus: float = 0.0  # random rows above one half that lone sentences forced so far

    def segments(self, edges: Sequence[int]) -> Iterator[RowSpan]:
        """Rows of one document without pairs."""
        first, stop = edges[0], edges[-1]
        while first < stop:
            end = min(first + self._draw_target(), stop)
            yield RowSpan(first, end, end, end, IS_NEXT)
            first = end

    def pairs(self, documents: Sequence[Sequence[int]], index: int) -> Iterator[RowSpan]:
        """Rows of document ``index``; random B's come from the others."""
        edges = documents[index]
        first, stop = edges[0], edges[-1]
        while first < stop:
            target = self._draw_target()
            end = min(first + target, stop)
            low = bisect_right(edges, first)
            high = bisect_left(edges, end, low)
            label = self._draw_label(is_lone=low == high)
            # A lone sentence (or part of one) has no border inside: half of the row is left for B.
            cut = edges[low + self._draw(high - low)] if low < high else min(end, first + target // 2)
            if label == IS_NEXT:
                yield RowSpan(first, cut, cut, end, IS_NEXT)
                first = end
            else:
                first_b, end_b = self._random_segment(documents, index, target - (cut - first))
                yield RowSpan(first, cut, first_b, end_b, NOT_NEXT)
                first = cut

    def _draw_target(self) -> int:
        if self.stream.random() < self.short_probability:
            return 2 + self._draw(self.room - 1)
        return self.room

    def _draw_label(self, *, is_lone: bool) -> int:
        """One half of each label: a lone sentence has no next one, and what it tips is made up for elsewhere."""
        if is_lone:
            self._surplus += 0.5
            return NOT_NEXT
        label = NOT_NEXT if self.stream.random() < 0.5 else IS_NEXT
        if label == NOT_NEXT and self._surplus >= 1:
            self._surplus -= 1
            return IS_NEXT
        return label

    def _draw(self, below: int) -> int:
        return int(self.stream.random() * below)

    def _random_segment(self, documents: Sequence[Sequence[int]], index: int, length: int) -> tuple[int, int]:
        """The text of another document from the start of a random sentence on, ``length`` ids or to its end."""
        other = (index + 1 + self._draw(len(documents) - 1)) % len(documents)
        edges = documents[other]
        first = edges[self._draw(len(edges) - 1)]
        return first, min(first + length, edges[-1])
