"""Where rows begin and end: next-sentence pairs as in original BERT (Devlin et al., 2018), or single segments.

Consecutive sentences fill a row up to its length. For pairs, a border between two of them cuts the row into A
and the B that follows; in half of the rows B comes from another document instead, never the same one, and the
sentences that B displaced open the next row. Where BERT truncates a row that has grown too long, here the
rest of the sentence opens the next row: each token of a document is in exactly one row as its own (and in any
number of rows as a random B).

The label must show in what the texts say, not in how the row is cut: A is cut before the label is drawn, and a random
B begins (at a sentence's start or inside one), ends (at a document's end or not) and is as long as the B that it
displaces would have done and been. Where that is not so, a model reads the label off the last token.
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
            is_lone = low == high  # no sentence's border inside: cut the sentence
            cut = first + 1 + self._draw(end - first - 1) if is_lone else edges[low + self._draw(high - low)]
            if self.stream.random() < 0.5 and cut < end:
                yield RowSpan(first, cut, cut, end, IS_NEXT)
                first = end
            else:
                if is_lone and end - first < _SHORTEST_CUT:  # the rest of it would open a row of a few ids
                    cut = end
                shape = _Shape(max(1, end - cut), max(1, first + target - cut), is_lone, end == stop)
                first_b, end_b = self._random_segment(documents, index, shape)
                yield RowSpan(first, cut, first_b, end_b, NOT_NEXT)
                first = cut

    def _draw_target(self) -> int:
        if self.stream.random() < self.short_probability:
            return 2 + self._draw(self.room - 1)
        return self.room

    def _draw(self, below: int) -> int:
        return int(self.stream.random() * below)

    def _random_segment(self, documents: Sequence[Sequence[int]], index: int, shape: "_Shape") -> tuple[int, int]:
        """Text of another document, cut like the B that it displaces; of some tries the nearest in length."""
        best, least = (0, 0), shape.room + 1
        for _ in range(_TRIES):
            edges = documents[(index + 1 + self._draw(len(documents) - 1)) % len(documents)]
            first, end = self._tail(edges, shape) if shape.ends_document else self._middle(edges, shape)
            distance = abs(end - first - shape.length)
            if end - first <= shape.room and distance < least:
                best, least = (first, end), distance
            if least <= shape.length * _NEAR_ENOUGH:
                break
        if best == (0, 0):  # every try ended in a sentence longer than the room
            best = (end - shape.room, end)
        return best

    def _middle(self, edges: Sequence[int], shape: "_Shape") -> tuple[int, int]:
        """From a random sentence on, or from inside it, to the wanted length or the document's end."""
        sentence = self._draw(len(edges) - 1)
        first = edges[sentence]
        if shape.starts_inside:
            first += self._draw(edges[sentence + 1] - first)
        return first, min(first + shape.length, edges[-1])

    def _tail(self, edges: Sequence[int], shape: "_Shape") -> tuple[int, int]:
        """The end of a document, of the wanted length or from the sentence that starts nearest to it."""
        wanted = edges[-1] - shape.length
        if shape.starts_inside:
            return max(edges[0], wanted), edges[-1]
        after = bisect_left(edges, wanted, 0, len(edges) - 2)
        first = min(edges[max(0, after - 1)], edges[after], key=lambda start: abs(start - wanted))
        return first, edges[-1]


_SHORTEST_CUT = 4
_TRIES = 16
_NEAR_ENOUGH = 0.2


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a B is cut: its length and its room in ids, whether it starts inside a sentence or ends its document."""

    length: int
    room: int
    starts_inside: bool
    ends_document: bool
