"""The word cache gives the ids of `tokenizers`, whatever the text."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.data_prep.encoder import CachedWordEncoder, PlainEncoder, build_encoder
from bitbert.data_prep.sentences import split_sentences
from bitbert.tokenizer import Tokenizer, load_tokenizer

TRICKY = [
    'The U.S. sells 3.14% of it, i.e. nothing... "Why?!" she said — naïve café ÅNGSTRÖM',
    "[MASK] in text, [SEP]glued[CLS], half[ MASK ], [UNK]",
    "日本語 mixed中文words and ﬁ ligatures ＦＵＬＬ width",
    "zero\u200bwidth soft\u00adhyphen e\u0301 \u0301alone \ufeffbom \ue000private",
    "x" * 150 + " " + "y" * 90,
    "tab\tand\u00a0no-break\u2003space\x85nel",
    "a_b+c=d<e>f^g`h|i~j$k \x1c\x1d control\x00s",
    "🙂👨‍👩‍👧 ΣΑΣ ǅ İstanbul ß ﷺ",
    "",
    "   ",
]


def expected(tokenizer: Tokenizer, sentences: list[str]) -> list[list[int]]:
    return tokenizer.encode_batch([" ".join(sentence.split()) for sentence in sentences])


def decoded(encoder: CachedWordEncoder | PlainEncoder, sentences: list[str]) -> list[list[int]]:
    return [np.frombuffer(ids, encoder.dtype).tolist() for ids in encoder.encode(sentences)]


def test_tricky_sentences(tokenizer: Tokenizer) -> None:
    encoder = build_encoder(tokenizer)
    assert isinstance(encoder, CachedWordEncoder)
    for _ in range(2):  # from the tokenizer first, from the cache then
        assert decoded(encoder, TRICKY) == expected(tokenizer, TRICKY)


@given(st.lists(st.text(), max_size=4))
@settings(max_examples=400, deadline=None)
def test_any_text(tokenizer: Tokenizer, sentences: list[str]) -> None:
    encoder = CachedWordEncoder(tokenizer)
    assert decoded(encoder, sentences) == expected(tokenizer, sentences)


def test_real_text_with_the_bert_vocabulary(data_folder: Path) -> None:
    tokenizer = load_tokenizer(str(data_folder / "vocab"))
    lines = (data_folder / "corpus" / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [sentence for line in lines for sentence in split_sentences(json.loads(line)["text"], "en")]
    assert len(sentences) > 1000
    assert decoded(build_encoder(tokenizer), sentences) == expected(tokenizer, sentences)


def test_the_cache_is_bounded_and_still_right(tokenizer: Tokenizer) -> None:
    encoder = CachedWordEncoder(tokenizer, max_words=20)
    for start in range(0, 400, 10):
        sentences = [" ".join(f"word{number}" for number in range(start, start + 10)), "z" * 70]
        assert decoded(encoder, sentences) == expected(tokenizer, sentences)
        assert len(encoder._words) <= 20
        assert "z" * 70 not in encoder._words


def test_rules_that_look_across_words_get_the_plain_encoder(tmp_path: Path, vocabulary: Path) -> None:
    from tokenizers import pre_tokenizers

    backend = load_tokenizer(str(vocabulary))._backend
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    encoder = build_encoder(tokenizer)
    assert isinstance(encoder, PlainEncoder)
    assert decoded(encoder, ["the river  and"]) == expected(tokenizer, ["the river and"])


def test_large_vocabularies_get_wide_ids(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "vocab_size", 70_000)
    encoder = CachedWordEncoder(tokenizer)
    assert encoder.dtype == np.dtype("<u4")
    assert decoded(encoder, TRICKY) == expected(tokenizer, TRICKY)
