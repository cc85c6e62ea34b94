"""Where rows begin and end: next-sentence pairs as in original BERT (Devlin et al., 2018), or single segments.

Consecutive sentences fill a row up to its length. For pairs, half of the rows cut them into A and the B that
follows; in the other half B comes from another document, never the same one, and the sentences that B displaced
open the next row. A sentence longer than half a row is continued, so each token of each document is in exactly
one row as its own (and in any number of rows as a random B).
"""

import random
from bisect import bisect_right
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
    """Cuts documents into rows.

    Attributes:
        room: ids a row, special tokens not counted.
        short_probability: share of rows that are filled to a random shorter length only.
        stream: the source of chance, used in a fixed order; ``random()`` alone, whose values Python promises to keep.
    """

    room: int
    short_probability: float
    stream: random.Random
    _surplus: float = 0.0  # random rows above one half that lone sentences forced so far

    def segments(self, edges: Sequence[int]) -> Iterator[RowSpan]:
        """Rows of one document without pairs; ``edges`` are the borders of its sentences, ends included."""
        start = 0
        while start < len(edges) - 1:
            end = self._fill(edges, start, self._draw_target())
            yield RowSpan(edges[start], edges[end], edges[end], edges[end], IS_NEXT)
            start = end

    def pairs(self, documents: Sequence[Sequence[int]], index: int) -> Iterator[RowSpan]:
        """Rows of document ``index``; random B's come from the others. Sentences are at most half of the room."""
        edges = documents[index]
        last = len(edges) - 1
        start = 0
        while start < last:
            target = self._draw_target()
            end = self._end_of_chunk(edges, start, target)
            is_random = self._draw_label(is_lone=end - start == 1) == NOT_NEXT
            cut = self._cut(edges, start, end, is_random)
            if not is_random:
                yield RowSpan(edges[start], edges[cut], edges[cut], edges[end], IS_NEXT)
                start = end
                continue
            length = edges[cut] - edges[start]
            first_b, end_b = self._random_segment(documents, index, target - length, self.room - length)
            yield RowSpan(edges[start], edges[cut], first_b, end_b, NOT_NEXT)
            start = cut

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

    def _draw_target(self) -> int:
        if self.stream.random() < self.short_probability:
            return 2 + self._draw(self.room - 1)
        return self.room

    def _draw(self, below: int) -> int:
        return int(self.stream.random() * below)

    @staticmethod
    def _fill(edges: Sequence[int], start: int, target: int) -> int:
        """The sentences from ``start`` on that ``target`` ids hold, at least one; index of the edge behind them."""
        return max(start + 1, bisect_right(edges, edges[start] + target, start + 1) - 1)

    def _end_of_chunk(self, edges: Sequence[int], start: int, target: int) -> int:
        """Like ``_fill``, but two sentences at least, and none left alone at the end of the document.

        A lone sentence can only become the A of a random pair: too many of them would tip the balance.
        """
        last = len(edges) - 1
        end = min(last, max(start + 2, self._fill(edges, start, target)))
        if last - end == 1:
            if edges[last] - edges[start] <= self.room:
                return last
            if end - start > 2:
                return end - 1
        return end

    def _cut(self, edges: Sequence[int], start: int, end: int, is_random: bool) -> int:
        """Index of the edge behind A."""
        count = end - start
        if is_random and end == len(edges) - 1 and count <= 2:
            # Nothing displaced rather than a lone sentence, if that leaves room for B.
            return end if edges[end] - edges[start] <= self.room * 3 // 4 else start + 1
        choices = count - 2 if is_random and end == len(edges) - 1 else count - 1
        return start + 1 + self._draw(choices)

    def _random_segment(self, documents: Sequence[Sequence[int]], index: int, target: int, room: int) -> tuple[int, int]:
        """Whole sentences of another document, from a random one on, that ``target`` ids hold; one at least, cut to ``room``."""
        other = (index + 1 + self._draw(len(documents) - 1)) % len(documents)
        edges = documents[other]
        start = self._draw(len(edges) - 1)
        end = self._fill(edges, start, target)
        return edges[start], min(edges[end], edges[start] + room)
