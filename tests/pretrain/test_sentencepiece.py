"""A SentencePiece vocabulary through the whole pipeline: shards, pretraining, packed model, answer."""

from pathlib import Path

import torch

from bitbert.data_prep.config import DataConfig, TokenizerConfig
from bitbert.data_prep.train_tokenizer import train_tokenizer
from bitbert.data_prep.write_shards import build_shards
from bitbert.packed import load_packed
from bitbert.tokenizer import load_tokenizer
from tests.conftest import TINY_SHAPE, run_module, tiny_documents, write_jsonl


def test_sentencepiece_from_text_to_an_answer(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForPreTraining

    corpus = write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(60))
    source = {"path": str(corpus)}
    teacher = tmp_path / "teacher"
    train_tokenizer(
        TokenizerConfig(output=str(tmp_path / "tokenizer"), sources=[source], kind="sentencepiece", vocab_size=80)
    )
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    assert tokenizer.kind == "sentencepiece"
    torch.manual_seed(0)
    BertForPreTraining(BertConfig(vocab_size=tokenizer.vocab_size, **TINY_SHAPE)).save_pretrained(teacher)
    tokenizer.save(teacher)
    build_shards(
        DataConfig(
            output=str(tmp_path / "shards"),
            sources=[source],
            tokenizer=str(teacher),
            max_length=32,
            heldout_fraction=0.3,
        ),
        workers=1,
    )
    trained = run_module(
        "bitbert.pretrain",
        "configs/pretrain/smoke.yaml",
        f"data={{train: {tmp_path}/shards/train, heldout: {tmp_path}/shards/heldout}}",
        f"teacher={teacher}",
        f"tokenizer={teacher}",
        f"output={tmp_path}/run",
        "steps=2",
    )
    assert trained.returncode == 0, trained.stderr
    exported = run_module("bitbert.pretrain.export", tmp_path / "run", tmp_path / "packed")
    assert exported.returncode == 0, exported.stderr
    answer = run_module("bitbert.runtime", tmp_path / "packed", "The river opens.", "The king reads.")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[0] in ("is_next", "not_next")
    assert load_packed(tmp_path / "packed").tokenizer.fingerprint == tokenizer.fingerprint
