"""Question answering: which tokens an answer is, in which window, and which span the logits name."""

import numpy as np
import pytest

from bitbert.finetune.head import Feature
from bitbert.finetune.spans import MAX_ANSWER_TOKENS, QuestionExamples, SpanHead, best_span
from bitbert.tokenizer import Tokenizer
from tests.conftest import WORDS


def text_of(feature: Feature, context: str) -> str:
    """What a feature's target says is the answer."""
    target = feature.target
    first, last = (target.characters[token - target.offset] for token in (target.start, target.end))
    return context[first[0] : last[1]]


@pytest.mark.parametrize("max_length", [12, 13, 16, 48])
def test_an_answer_is_in_the_windows_that_hold_all_of_it(tiny_tokenizer: Tokenizer, max_length: int) -> None:
    words = WORDS[:30]
    context = " ".join(words)
    starts = [len(" ".join([*words[:place], ""])) for place in range(29)]
    answers = [(f"{words[place]} {words[place + 1]}", starts[place]) for place in range(29)]
    examples = QuestionExamples(["the queen"] * 29, [context] * 29, [[answer] for answer in answers])
    head = SpanHead()
    features = head.encode(examples, tiny_tokenizer, max_length)
    for number, (text, start) in enumerate(answers):
        windows = [feature for feature in features if feature.example == number]
        for feature in windows:
            assert len(feature.input_ids) <= max_length
            characters = feature.target.characters
            holds_all = characters[0][0] <= start and characters[-1][1] >= start + len(text)
            assert (feature.target.start > 0) == holds_all
            if holds_all:
                assert text_of(feature, context) == text
            else:
                assert feature.target.start == feature.target.end == 0
        assert any(feature.target.start for feature in windows), text


def test_an_answer_is_the_pieces_that_it_touches(tiny_tokenizer: Tokenizer) -> None:
    """No neighbour that ends where it begins, or begins where it ends; a part of a word is the word."""
    context = "king.queen.river"
    for text, start, found in ((".", 4, "."), ("queen", 5, "queen"), ("uee", 6, "queen"), ("g.q", 3, "king.queen")):
        examples = QuestionExamples(["the"], [context], [[(text, start)]])
        (feature,) = SpanHead().encode(examples, tiny_tokenizer, 32)
        assert text_of(feature, context) == found


def test_the_question_leaves_half_of_the_row_to_the_context(tiny_tokenizer: Tokenizer) -> None:
    examples = QuestionExamples(["the old king reads " * 20], ["river " * 20], [[("river", 0)]])
    feature = SpanHead().encode(examples, tiny_tokenizer, 16)[0]
    assert feature.target.offset == 8
    assert feature.token_type_ids == [0] * 8 + [1] * 8
    long = SpanHead().encode(examples, tiny_tokenizer, 512)[0]
    assert long.target.offset == 64 + 2  # [CLS] and [SEP]


def test_a_span_of_30_tokens_is_not_too_long_and_one_of_31_is() -> None:
    start, end = np.zeros(60), np.zeros(60)
    start[10], end[10 + MAX_ANSWER_TOKENS - 1], end[10 + MAX_ANSWER_TOKENS] = 9, 7, 8
    assert best_span(start, end) == (16.0, 10, 10 + MAX_ANSWER_TOKENS - 1)
    end[10] = 7.5
    assert best_span(start, end) == (16.5, 10, 10)  # one token is a span


def test_the_windows_compete(tiny_tokenizer: Tokenizer) -> None:
    context = " ".join(WORDS[:12])
    examples = QuestionExamples(["the"], [context], [[(WORDS[0], 0)]])
    head = SpanHead()
    features = head.encode(examples, tiny_tokenizer, 10)
    outputs = []
    for number, feature in enumerate(features):
        logits = np.zeros((2, len(feature.input_ids)))
        logits[:, feature.target.offset] = 1 + (number == 1)
        logits[:, 0] = 100  # [CLS] is no answer
        outputs.append(logits)
    expected = features[1].target.characters[0]
    assert head.predict(examples, features, outputs) == [context[slice(*expected)]]


def test_the_best_of_the_accepted_answers_counts() -> None:
    examples = QuestionExamples(["q", "q"], ["c", "c"], [[("king", 0), ("old king", 0)], [("river", 0)]])
    assert SpanHead().score(["old king", "a river"], examples) == {"f1": 1.0, "exact_match": 1.0}
