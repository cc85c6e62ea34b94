"""Rows: no token lost, no row too long, labels in balance, B never from the same document."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from bitbert.data_prep.pairs import IS_NEXT, NOT_NEXT, RowBuilder

Documents = list[list[int]]


def edges_of(documents: list[list[int]]) -> Documents:
    """Edges of documents given as sentence lengths; one document lies behind the other."""
    edges, end = [], 0
    for lengths in documents:
        edges.append([end])
        for length in lengths:
            end += length
            edges[-1].append(end)
    return edges


corpora = st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=12), min_size=2, max_size=8).map(edges_of)


@given(corpora, st.integers(5, 64), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_each_token_is_in_one_row_and_no_row_is_too_long(
    documents: Documents, room: int, short: float, seed: int
) -> None:
    builder = RowBuilder(room, short, random.Random(seed))
    for index, edges in enumerate(documents):
        own: list[tuple[int, int]] = []
        for span in builder.pairs(documents, index):
            length_a, length_b = span.end_a - span.first_a, span.end_b - span.first_b
            assert length_a >= 1
            assert length_b >= 1
            assert length_a + length_b <= room
            own.append((span.first_a, span.end_a))
            if span.label == IS_NEXT:
                assert span.first_b == span.end_a
                own.append((span.first_b, span.end_b))
            else:
                other = next(k for k, found in enumerate(documents) if found[0] <= span.first_b < found[-1])
                assert other != index
                assert span.end_b <= documents[other][-1]
        assert own[0][0] == edges[0]
        assert own[-1][1] == edges[-1]
        assert all(before[1] == after[0] for before, after in pairwise(own))


@given(corpora, st.integers(2, 64), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_single_segments_hold_each_token_once(documents: Documents, room: int, seed: int) -> None:
    builder = RowBuilder(room, 0.1, random.Random(seed))
    for edges in documents:
        spans = list(builder.segments(edges))
        assert [spans[0].first_a, spans[-1].end_a] == [edges[0], edges[-1]]
        assert all(before.end_a == after.first_a for before, after in pairwise(spans))
        assert all(0 < span.end_a - span.first_a <= room and span.first_b == span.end_b for span in spans)


@pytest.mark.parametrize(("room", "sentences"), [(125, 40), (509, 60), (61, 4)])
def test_half_of_the_rows_have_a_random_next(room: int, sentences: int) -> None:
    """Short documents too, whose lone last sentences can only be an A with a random B."""
    stream = random.Random(1)
    documents = edges_of([[stream.randint(4, 45) for _ in range(sentences)] for _ in range(12_000 // sentences)])
    builder = RowBuilder(room, 0.1, random.Random(2))
    labels = [span.label for index in range(len(documents)) for span in builder.pairs(documents, index)]
    deviation = abs(labels.count(NOT_NEXT) / len(labels) - 0.5)
    assert deviation < 3 * 0.5 / len(labels) ** 0.5


def test_short_rows_have_their_probability_and_others_are_full() -> None:
    documents = edges_of([[20] * 4000, [20] * 4000])
    spans = list(RowBuilder(125, 0.1, random.Random(3)).pairs(documents, 0))
    short = sum(span.end_a - span.first_a + span.end_b - span.first_b < 125 for span in spans[:-3]) / len(spans)
    # A random B from near the end of the other document is short as well, but rarely.
    assert 0.07 < short < 0.14


def test_a_lone_sentence_is_cut_for_both_labels() -> None:
    documents = edges_of([[9], [7, 7]])
    first_rows = [next(RowBuilder(61, 0.0, random.Random(seed)).pairs(documents, 0)) for seed in range(40)]
    assert {span.label for span in first_rows} == {IS_NEXT, NOT_NEXT}
    for span in first_rows:
        assert 0 < span.end_a < 9
        if span.label == NOT_NEXT:  # as long as the B it displaces, and from the end of a document as that one is
            assert (span.end_b - span.first_b, span.end_b) == (9 - span.end_a, 23)


def test_a_lone_id_has_a_random_b() -> None:
    documents = edges_of([[1], [7, 7]])
    (span,) = RowBuilder(61, 0.0, random.Random(4)).pairs(documents, 0)
    assert (span.first_a, span.end_a, span.label, span.end_b - span.first_b) == (0, 1, NOT_NEXT, 1)


@pytest.mark.parametrize("room", [61, 125])
@pytest.mark.parametrize("longest", [5, 60])
def test_the_label_does_not_show_in_how_a_row_is_cut(room: int, longest: int) -> None:
    """Lengths, and whether A and B start and end at a sentence's border, must not tell the label.

    They once did in most rows: a random B was cut to fill its row, a true B ended with its document.
    """
    stream = random.Random(1)
    documents = edges_of([[stream.randint(3, 45) for _ in range(stream.randint(1, longest))] for _ in range(1200)])
    borders = {border for edges in documents for border in edges}
    builder = RowBuilder(room, 0.1, random.Random(2))
    spans = [span for index in range(len(documents)) for span in builder.pairs(documents, index)][:20_000]
    features = [
        [
            span.end_a - span.first_a,
            span.end_b - span.first_b,
            span.end_a - span.first_a + span.end_b - span.first_b,
            span.end_a in borders,
            span.first_b in borders,
            span.end_b in borders,
        ]
        for span in spans
    ]
    labels = [span.label for span in spans]
    half = len(spans) // 2
    tree = DecisionTreeClassifier(max_depth=6, min_samples_leaf=50, random_state=0).fit(features[:half], labels[:half])
    assert tree.score(features[half:], labels[half:]) < 0.57
