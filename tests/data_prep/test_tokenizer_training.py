"""Trained tokenizers: the same bytes on every run, and good for the whole pipeline."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitbert.config import dump_config
from bitbert.data_prep.config import DataConfig, TokenizerConfig
from bitbert.data_prep.train_tokenizer import _sample_sentences, count_words, train_tokenizer
from bitbert.data_prep.wordpiece import learn_vocabulary
from bitbert.data_prep.write_shards import build_shards
from bitbert.errors import UserError
from bitbert.shards import ShardReader
from bitbert.tokenizer import SPECIAL_TOKENS

from .conftest import make_documents, tree_hashes, write_jsonl


@pytest.fixture
def make_training(tmp_path: Path) -> Callable[..., TokenizerConfig]:
    path = write_jsonl(tmp_path / "a.jsonl", make_documents(200))

    def make(**changes: Any) -> TokenizerConfig:
        settings = {"output": str(tmp_path / "trained"), "sources": [{"path": str(path)}], "vocab_size": 90}
        return TokenizerConfig.model_validate(settings | changes)

    return make


def test_merges_by_hand() -> None:
    """ab occurs 5 times and wins; then b+c and d+e tie with 3, and the lower code points win."""
    words = {"ab": 2, "abc": 3, "de": 3}
    tokens = learn_vocabulary(words, special_tokens=["[UNK]"], vocab_size=20, min_frequency=3)
    assert tokens == ["[UNK]", "##b", "##c", "##e", "a", "d", "ab", "abc", "de"]
    assert learn_vocabulary(words, special_tokens=["[UNK]"], vocab_size=7, min_frequency=3) == tokens[:7]
    assert learn_vocabulary(words, special_tokens=["[UNK]"], vocab_size=20, min_frequency=4) == tokens[:7]


def test_repeated_characters_and_counts_stay_in_step() -> None:
    """Incremental counts equal those counted anew after each merge."""
    words = {"aaaa": 4, "aaab": 3, "banana": 5, "bananas": 2, "nab": 1}
    tokens = learn_vocabulary(words, special_tokens=[], vocab_size=100, min_frequency=1)
    assert tokens == _slow_vocabulary(words)


def _slow_vocabulary(words: dict[str, int]) -> list[str]:
    symbols = {word: [word[0], *(f"##{character}" for character in word[1:])] for word in words}
    tokens = sorted({symbol for found in symbols.values() for symbol in found})
    while True:
        pairs = Counter[tuple[str, str]]()
        for word, count in words.items():
            for pair in zip(symbols[word], symbols[word][1:], strict=False):
                pairs[pair] += count
        if not pairs:
            return tokens
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged = first + second.removeprefix("##")
        for word, found in symbols.items():
            place = 0
            while place < len(found) - 1:
                if (found[place], found[place + 1]) == (first, second):
                    found[place : place + 2] = [merged]
                place += 1
            symbols[word] = found
        if merged not in tokens:
            tokens.append(merged)


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_every_run_gives_the_same_bytes(
    tmp_path: Path, make_training: Callable[..., TokenizerConfig], kind: str
) -> None:
    """Fresh processes with other hash seeds: what made other trainers differ from run to run."""
    hashes = []
    for seed in ("1", "2", "3"):
        config = make_training(kind=kind, output=str(tmp_path / seed))
        dump_config(config, tmp_path / "config.yaml")
        command = [sys.executable, "-m", "bitbert.data_prep", "tokenizer", str(tmp_path / "config.yaml")]
        subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": seed, "PATH": ""})
        hashes.append(tree_hashes(tmp_path / seed))
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[0]


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_trained_tokenizers_work_through_the_pipeline(
    tmp_path: Path,
    make_training: Callable[..., TokenizerConfig],
    make_config: Callable[..., DataConfig],
    kind: str,
) -> None:
    trained = train_tokenizer(make_training(kind=kind))
    assert trained.kind == kind
    assert trained.vocab_size <= 90
    report = build_shards(make_config(tmp_path / "a.jsonl", tokenizer=str(tmp_path / "trained")), workers=1)
    reader = ShardReader(tmp_path / "shards" / "train")
    assert reader.tokenizer == trained.describe()
    rows = [list(row.input_ids) for row in reader]
    assert all(row[0] == trained.cls_id and row[-1] == trained.sep_id for row in rows)
    # SentencePiece leaves out the rarest characters: it covers 99.95 % of the text.
    assert sum(row.count(trained.unk_id) for row in rows) < 0.005 * sum(map(len, rows))
    assert report["train"]["rows"] == len(rows)


def test_text_cannot_spell_the_special_tokens_of_sentencepiece(
    make_training: Callable[..., TokenizerConfig],
) -> None:
    trained = train_tokenizer(make_training(kind="sentencepiece"))
    specials = {trained.token_to_id(token) for token in SPECIAL_TOKENS}
    assert len(specials) == 5
    (ids,) = trained.encode_batch(["a [MASK] b"])
    assert trained.mask_id not in ids


def test_counting_is_bounded_and_keeps_the_frequent_words(tmp_path: Path) -> None:
    documents = [f"Common words here and common words there, number x{number}y." for number in range(3000)]
    path = write_jsonl(tmp_path / "many.jsonl", documents)
    config = TokenizerConfig(output="unused", sources=[{"path": str(path)}], max_words=1000)
    words = count_words(config)
    assert words["common"] == 6000
    assert len(words) < 2100


def test_case_is_kept_on_wish(make_training: Callable[..., TokenizerConfig]) -> None:
    assert train_tokenizer(make_training(lowercase=False)).token_to_id("D") is not None
    assert train_tokenizer(make_training(), replace=True).token_to_id("D") is None


def test_sentences_are_sampled_with_a_bound(make_training: Callable[..., TokenizerConfig]) -> None:
    first = train_tokenizer(make_training(kind="sentencepiece", max_sentences=300, vocab_size=70))
    again = train_tokenizer(make_training(kind="sentencepiece", max_sentences=300, vocab_size=70), replace=True)
    other = train_tokenizer(make_training(kind="sentencepiece", max_sentences=300, vocab_size=70, seed=7), replace=True)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_text_without_sentence_ends_is_learnt_from(
    tmp_path: Path, make_training: Callable[..., TokenizerConfig]
) -> None:
    """SentencePiece leaves out sentences above 4192 bytes; 1,400 Thai letters are that long."""
    letters = "".join(chr(code) for code in range(0x0E01, 0x0E2F))
    stream = random.Random(0)
    documents = ["".join(stream.choices(letters, k=4000)) for _ in range(20)]
    path = write_jsonl(tmp_path / "thai.jsonl", [*documents, *make_documents(100)])
    config = make_training(kind="sentencepiece", sources=[{"path": str(path)}], vocab_size=150)
    pieces = [piece for piece in _sample_sentences(config) if piece[0] in letters]
    assert "".join(pieces) == "".join(documents)
    assert max(len(piece.encode()) for piece in pieces) <= 4000
    trained = train_tokenizer(config)
    (ids,) = trained.encode_batch([documents[0]])
    assert trained.unk_id not in ids


def test_a_tokenizer_below_its_corpus_is_replaced(
    tmp_path: Path, make_training: Callable[..., TokenizerConfig]
) -> None:
    """Its vocab.txt and tokenizer.json are no corpus."""
    config = make_training(sources=[{"path": str(tmp_path)}])
    first = train_tokenizer(config).fingerprint
    assert train_tokenizer(config, replace=True).fingerprint == first


def test_vocabularies_that_cannot_be_are_refused(tmp_path: Path, make_training: Callable[..., TokenizerConfig]) -> None:
    with pytest.raises(UserError, match=r"vocab_size=64 is below the \d+ special tokens and characters"):
        train_tokenizer(make_training(vocab_size=64))
    with pytest.raises(UserError, match="SentencePiece cannot train vocab_size=9000"):
        train_tokenizer(make_training(kind="sentencepiece", vocab_size=9000))
    empty = write_jsonl(tmp_path / "empty.jsonl", [""])
    for kind, missing in (("wordpiece", "no word"), ("sentencepiece", "no sentence")):
        with pytest.raises(UserError, match=missing):
            train_tokenizer(make_training(kind=kind, sources=[{"path": str(empty)}]))
    assert not (tmp_path / "trained").exists()
