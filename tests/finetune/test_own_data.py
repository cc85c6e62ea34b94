"""One's own files: what their columns mean, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitbert.errors import UserError
from bitbert.finetune.own_data import read_own_task
from bitbert.finetune.sequence import SequenceHead
from bitbert.finetune.spans import QuestionExamples, SpanHead
from bitbert.finetune.tokens import TokenHead, WordExamples
from bitbert.model.modeling import IGNORED_LABEL
from bitbert.tokenizer import Tokenizer

QUESTION = {
    "question": "the queen",
    "context": "the old king reads. the queen paints",
    "answers": {"text": ["old king"], "answer_start": [4]},
}


def write(path: Path, content: str | list[Any]) -> Path:
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(text, encoding="utf-8")
    return path


def test_classes_and_scores(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", 'text,label\n"a, quoted\nover lines",yes\nb,no\n')
    evaluation = write(tmp_path / "b.jsonl", [{"text": "c", "label": "yes"}])
    task = read_own_task(train, evaluation)
    assert (task.name, task.head.labels, task.train.texts) == ("a", ("no", "yes"), ["a, quoted\nover lines", "b"])
    assert task.evaluation["eval"].labels.tolist() == [1]
    scores = read_own_task(*[write(tmp_path / "train.csv", "text_a,text_b,score\na,b,0.5\nc,d,2\n")] * 2)
    assert (scores.name, scores.train.second_texts, scores.train.labels.tolist()) == (
        tmp_path.name,
        ["b", "d"],
        [0.5, 2.0],
    )
    assert scores.head.metrics == ("pearson", "spearman")
    tabs = read_own_task(*[write(tmp_path / "a.tsv", "text\tlabel\na\t1\nb\t0\n")] * 2)
    assert isinstance(tabs.head, SequenceHead)
    assert tabs.head.labels == ("0", "1")


def test_word_classes(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    rows = [{"tokens": ["The", "kings", "reads"], "tags": ["O", "B-who", "O"]}, {"tokens": ["a"], "tags": ["O"]}]
    task = read_own_task(*[write(tmp_path / "a.jsonl", rows)] * 2)
    assert isinstance(task.head, TokenHead)
    assert (task.head.labels, task.head.metrics) == (("B-who", "O"), ("entity_f1", "accuracy"))
    assert isinstance(task.train, WordExamples)
    feature = task.head.encode(task.train, tiny_tokenizer, 32)[0]
    the, kings, reads = (tiny_tokenizer.encode_batch([word])[0] for word in ("the", "kings", "reads"))
    assert len(kings) > 1
    assert feature.input_ids == [tiny_tokenizer.cls_id, *the, *kings, *reads, tiny_tokenizer.sep_id]
    ignored = [IGNORED_LABEL]
    assert feature.target == ignored + [1] + [0] + ignored * (len(kings) - 1) + [1] + ignored
    # Cut after two words: the third is answered with "O".
    cut = task.head.encode(task.train, tiny_tokenizer, len(the) + len(kings) + 2)
    logits = [np.tile([1.0, 0.0], (len(row.input_ids), 1)) for row in cut]
    assert task.head.predict(task.train, cut, logits) == [[0, 0, 1], [0]]
    assert task.head.score([[0, 0, 1], [0]], task.train) == {"entity_f1": 0.5, "accuracy": 0.5}
    assert task.head.baseline(task.train, task.train) == {"entity_f1": 0.0, "accuracy": 0.75}
    rows = [{"tokens": ["a", "\x01"], "tags": ["DET", "X"]}]
    speech = read_own_task(*[write(tmp_path / "b.jsonl", rows)] * 2)
    assert speech.head.metrics == ("accuracy",)
    assert speech.head.encode(speech.train, tiny_tokenizer, 32)[0].input_ids[2] == tiny_tokenizer.unk_id


def test_questions_as_lines_and_in_squads_nesting(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    answers = [{"text": "old king", "answer_start": 4}]
    paragraph = {"context": QUESTION["context"], "qas": [{"question": "the queen", "answers": answers, "id": "1"}]}
    nested = write(tmp_path / "a.json", json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    task = read_own_task(write(tmp_path / "a.jsonl", [QUESTION]), nested)
    assert task.train == task.evaluation["eval"]
    assert isinstance(task.head, SpanHead)
    assert isinstance(task.train, QuestionExamples)
    (feature,) = task.head.encode(task.train, tiny_tokenizer, 32)
    span = feature.target
    assert (span.start, span.end) == (5, 6)  # [CLS] the queen [SEP] the old king
    begin, end = span.characters[span.start - span.offset][0], span.characters[span.end - span.offset][1]
    assert QUESTION["context"][begin:end] == "old king"


def test_long_contexts_are_read_in_windows(tiny_tokenizer: Tokenizer) -> None:
    context = " ".join(["the river"] * 20 + ["old king"] + ["a bridge"] * 20)
    place = context.index("old king")
    examples = QuestionExamples(
        ["the queen", "the queen"], [context, "old king"], [[("old king", place)], [("king", 4)]]
    )
    head = SpanHead()
    features = head.encode(examples, tiny_tokenizer, 24)
    assert all(len(feature.input_ids) <= 24 for feature in features)
    first = [feature for feature in features if feature.example == 0]
    covered = {span for feature in first for span in feature.target.characters}
    assert len(covered) == 82  # every token of the context is in a window
    with_answer = [feature for feature in first if feature.target.start]
    assert with_answer
    assert any(feature.target.start == feature.target.end == 0 for feature in first)
    outputs = []
    for feature in features:  # logits that know the answer
        logits = np.zeros((2, len(feature.input_ids)))
        logits[0, feature.target.start], logits[1, feature.target.end] = 5, 5
        outputs.append(logits)
    assert head.predict(examples, features, outputs) == ["old king", "king"]
    assert head.score(["old king", "queen"], examples) == {"f1": 0.5, "exact_match": 0.5}


def test_texts_are_read_as_they_are(tmp_path: Path) -> None:
    tabs = write(tmp_path / "a.tsv", 'text\tlabel\n"a\tyes\nb\tno\nc"\tyes\n')
    assert read_own_task(tabs, tabs).train.texts == ['"a', "b", 'c"']  # no row runs on to the next quotation mark
    long = write(tmp_path / "long.csv", f"text,label\n{'word ' * 30_000},yes\nb,no\n")
    assert len(read_own_task(long, long).train.texts[0]) == 150_000
    text = "one\u2028two\u0085three"
    lines = "".join(
        json.dumps({"text": text, "label": name}, ensure_ascii=False) + "\n" for name in ("yes", "no", "no")
    )
    separators = write(tmp_path / "a.jsonl", lines)
    assert read_own_task(separators, separators).train.texts == [text] * 3
    booleans = write(tmp_path / "b.jsonl", [{"text": "a", "label": True}, {"text": 3, "label": False}])
    task = read_own_task(booleans, booleans)
    assert (task.train.texts, task.head.labels) == (["a", "3"], ("False", "True"))


@pytest.mark.parametrize(
    ("train", "evaluation", "message"),
    [
        ("text,label\na,yes\nb,no\n", "text,label\nc,maybe\n", "label 'maybe', wanted one of no, yes"),
        ("text,label\na,yes\n", "text,label\nc,yes\n", "one label only"),
        ("sentence,label\na,yes\n", "text,label\nc,yes\n", "wanted text,label or"),
        ("text,label\n", "text,label\nc,yes\n", "holds no examples"),
        ("text,score\na,high\n", "text,score\nc,1\n", "score 'high', wanted a number"),
        ("text,score\na,nan\n", "text,score\nc,1\n", "wanted a finite number"),
        ("text,label\na,yes\nb\n", "text,label\nc,yes\n", "example 2: no 'label'"),
        ("text,label\na,yes\nb,no\n", "words,label\nc,yes\n", "example 1: no 'text'"),
        ("text,label\na,yes\nb,no\nwhat,\n", "text,label\nc,yes\n", "example 3: no 'label'"),
        ("label,text\n0,a\n1,Hello, dear world\n", "text,label\nc,1\n", "line 3: 3 cells, the header has 2,"),
        ("text;label\nHello, world;1\n", "text,label\nc,1\n", "the header has 1, .'text;label'.; commas separate"),
        ('text,label\n"a,yes\nb,no\n', "text,label\nc,yes\n", "after line 1: unexpected end of data; repair"),
    ],
)
def test_bad_tables(tmp_path: Path, train: str, evaluation: str, message: str) -> None:
    first, second = write(tmp_path / "a.csv", train), write(tmp_path / "b.csv", evaluation)
    with pytest.raises(UserError, match=message):
        read_own_task(first, second)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{\n", "line 1: not valid JSON"),
        ("[1]\n", "line 1: holds list"),
        ([{"tokens": ["a", "b"], "tags": ["O"]}], "two lists of the same length"),
        ([{**QUESTION, "answers": {"text": [], "answer_start": []}}], "no answer; wanted SQuAD 1.1"),
        ([{**QUESTION, "answers": {"text": ["king"], "answer_start": [0]}}], "'king' is not at character 0"),
        ([{**QUESTION, "context": 1}], "wanted question, context and answers"),
        ([{**QUESTION, "answers": {"text": "old king", "answer_start": 4}}], "two lists of the same length"),
        ([{**QUESTION, "answers": {"text": ["old king"], "answer_start": []}}], "two lists of the same length"),
        ([{**QUESTION, "answers": {"text": [4], "answer_start": [4]}}], "answer 4, wanted a part of the context"),
        ([{**QUESTION, "answers": {"text": [" "], "answer_start": [3]}}], "answer ' ', wanted a part of the context"),
        ([{**QUESTION, "context": "a king", "answers": {"text": ["kin"], "answer_start": [-4]}}], "at character -4"),
        ([{**QUESTION, "context": "aking", "answers": {"text": ["king"], "answer_start": [True]}}], "character True"),
        ([{"tokens": ["a", "b"], "tags": ["O", "O"]}], "one label only, 'O'"),
        ("[" * 200_000 + "\n", "line 1: not valid JSON"),
        (f'{{"text": "a", "label": {"1" * 5000}}}\n', "line 1: not valid JSON"),
        ([{"text": ["a", "b"], "label": "yes"}], r"example 1: text \['a', 'b'\], wanted a string"),
        (
            [{"text": "a", "label": label} for label in (1, 1.0, True)],
            "classes of type bool, float, int; wanted one type",
        ),
        ([{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y"]}], "classes of type list"),
        ([{"tokens": ["a", "b"], "tags": ["O", None]}], "classes of type NoneType, str"),
        ([{"tokens": [["a"]], "tags": ["O"]}], "wanted a string"),
        ('{"text": "half \\ud83d", "label": "yes"}\n', "line 1: .* is one half of a character"),
    ],
)
def test_bad_lines(tmp_path: Path, rows: str | list[Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=message):
        read_own_task(path, path)


def test_other_bad_files(tmp_path: Path) -> None:
    tagged = write(tmp_path / "a.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-y"]}])
    other = write(tmp_path / "b.jsonl", [{"tokens": ["a"], "tags": ["B-x"]}])
    with pytest.raises(UserError, match="tag 'B-x', wanted one of B-y, O"):
        read_own_task(tagged, other)
    with pytest.raises(UserError, match="does not exist"):
        read_own_task(tmp_path / "absent.csv", tagged)
    with pytest.raises(UserError, match=r"ends in '\.txt'"):
        read_own_task(write(tmp_path / "a.txt", "a"), tagged)
    with pytest.raises(UserError, match="not in SQuAD's format"):
        read_own_task(write(tmp_path / "a.json", '{"version": "1.1"}'), tagged)
    (tmp_path / "c.csv").write_bytes(b"text,label\n\xff,yes\n")
    with pytest.raises(UserError, match="is not UTF-8 at byte 11"):
        read_own_task(tmp_path / "c.csv", tagged)
