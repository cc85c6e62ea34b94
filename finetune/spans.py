"""Answers that are a part of a context: question answering as in SQuAD 1.1."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bitbert.model import BitBertForQuestionAnswering
from bitbert.tokenizer import Tokenizer

from .head import Feature, Head

MAX_QUESTION_TOKENS = 64
MAX_ANSWER_TOKENS = 30
_CANDIDATES = 20
# WordPiece cuts at white space and around punctuation, SentencePiece marks what follows white space.
_PIECES = {"wordpiece": re.compile(r"\w+|[^\w\s]"), "sentencepiece": re.compile(r"\S+")}


@dataclass(frozen=True)
class QuestionExamples:
    """Questions, contexts, and of each question the accepted answers as (text, first character in the context)."""

    questions: list[str]
    contexts: list[str]
    answers: list[list[tuple[str, int]]]

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, indices: np.ndarray) -> "QuestionExamples":
        """The examples at ``indices``."""
        return QuestionExamples(
            [self.questions[index] for index in indices],
            [self.contexts[index] for index in indices],
            [self.answers[index] for index in indices],
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Target of a window: answer tokens [start, end], both 0 ([CLS]) where the window lacks it; characters of tokens.

    ``characters`` is (begin, end) of the piece that each of the window's context tokens belongs to; ``offset`` the
    position of the first of them.
    """

    start: int
    end: int
    offset: int
    characters: list[tuple[int, int]]


class SpanHead(Head[QuestionExamples]):
    """The best-scored span of at most 30 tokens over all windows of the context.

    A context that does not fit is read in windows of which each begins half a window after the one before.
    """

    model_class = BitBertForQuestionAnswering
    parameters: ClassVar[tuple[str, ...]] = ("qa_outputs.weight", "qa_outputs.bias")
    metrics = ("f1", "exact_match")

    def config_fields(self) -> dict[str, Any]:
        return {}

    def encode(self, examples: QuestionExamples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        pattern = _PIECES[tokenizer.kind]
        features = []
        for index, (question, context) in enumerate(zip(examples.questions, examples.contexts, strict=True)):
            (question_ids,) = tokenizer.encode_batch([question])
            # A short max_length still leaves half of the row to the context.
            prefix = [
                tokenizer.cls_id,
                *question_ids[: min(MAX_QUESTION_TOKENS, max_length // 2 - 2)],
                tokenizer.sep_id,
            ]
            found = [match.span() for match in pattern.finditer(context)]
            pieces = tokenizer.encode_batch([context[begin:end] for begin, end in found])
            ids = [token for piece in pieces for token in piece]
            characters = [span for span, piece in zip(found, pieces, strict=True) for _ in piece]
            answer = _answer_tokens(examples.answers[index], characters)
            room = max_length - len(prefix) - 1
            for begin in _window_starts(len(ids), room):
                window = ids[begin : begin + room]
                start, end = 0, 0
                if answer is not None and begin <= answer[0] and answer[1] < begin + len(window):
                    start, end = (len(prefix) + token - begin for token in answer)
                target = Span(start, end, len(prefix), characters[begin : begin + room])
                types = [0] * len(prefix) + [1] * (len(window) + 1)
                features.append(Feature([*prefix, *window, tokenizer.sep_id], types, target, index))
        return features

    def targets(self, features: Sequence[Feature], length: int) -> dict[str, np.ndarray]:
        return {
            "start_positions": np.array([feature.target.start for feature in features], dtype=np.int64),
            "end_positions": np.array([feature.target.end for feature in features], dtype=np.int64),
        }

    def outputs(self, output: Any) -> np.ndarray:
        return np.stack([part.float().cpu().numpy() for part in (output.start_logits, output.end_logits)], axis=1)

    def predict(
        self, examples: QuestionExamples, features: Sequence[Feature], outputs: Sequence[np.ndarray]
    ) -> list[str]:
        best = [(-np.inf, "")] * len(examples)
        for feature, (start_logits, end_logits) in zip(features, outputs, strict=True):
            target, context = feature.target, examples.contexts[feature.example]
            context_tokens = slice(target.offset, target.offset + len(target.characters))
            found = best_span(start_logits[context_tokens], end_logits[context_tokens])
            if found is not None and found[0] > best[feature.example][0]:
                score, start, end = found
                text = context[target.characters[start][0] : target.characters[end][1]]
                best[feature.example] = (score, text)
        return [text for _, text in best]

    def score(self, predictions: list[str], examples: QuestionExamples) -> dict[str, float]:
        pairs = list(zip(predictions, examples.answers, strict=True))
        return {
            name: float(np.mean([max(measure(found, text) for text, _ in answers) for found, answers in pairs]))
            for name, measure in (("f1", answer_f1), ("exact_match", exact_match))
        }

    def baseline(self, train: QuestionExamples, examples: QuestionExamples) -> dict[str, float]:
        """No constant answer suits more than one context."""
        return {}


def best_span(start_logits: np.ndarray, end_logits: np.ndarray) -> tuple[float, int, int] | None:
    """(score, first token, last token) of the best span among the likeliest starts and ends; None without tokens."""
    best = None
    for start in np.argsort(-start_logits, kind="stable")[:_CANDIDATES]:
        for end in np.argsort(-end_logits, kind="stable")[:_CANDIDATES]:
            if start <= end < start + MAX_ANSWER_TOKENS:
                score = float(start_logits[start] + end_logits[end])
                if best is None or score > best[0]:
                    best = (score, int(start), int(end))
    return best


def normalize_answer(text: str) -> list[str]:
    """Words in lower case without punctuation and articles, as SQuAD compares them."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same after normalization."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def answer_f1(prediction: str, answer: str) -> float:
    """F1 over words after normalization."""
    found, wanted = Counter(normalize_answer(prediction)), Counter(normalize_answer(answer))
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


def _answer_tokens(answers: Sequence[tuple[str, int]], characters: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """First and last context token that the first accepted answer touches."""
    text, begin = answers[0]
    touched = [token for token, (first, last) in enumerate(characters) if first < begin + len(text) and last > begin]
    return (touched[0], touched[-1]) if touched else None


def _window_starts(num_tokens: int, room: int) -> list[int]:
    step = max(room // 2, 1)
    return [0, *range(step, num_tokens - room + step, step)] if num_tokens > room else [0]
