"""Full-precision starts: what is no complete BERT is refused, and padded word tables are cut to the tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertForMaskedLM

from bitbert.errors import UserError
from bitbert.finetune.data import TaskData
from bitbert.finetune.run import finetune
from bitbert.finetune.source import open_source
from bitbert.finetune.stage_source import open_stage
from bitbert.finetune.stages import StageConfig
from bitbert.packed import load_packed
from bitbert.tokenizer import Tokenizer
from tests.conftest import BERT_DAMAGE, TINY_SHAPE, tiny_model
from tests.finetune.conftest import RECIPE


def write_bert(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> Path:
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=vocab_size, initializer_range=0.2, **TINY_SHAPE)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(str(folder), "baseline")
    with pytest.raises(UserError, match=message):
        open_stage("s", StageConfig(method="full-precision"), str(folder))


def test_what_is_no_bert_is_refused(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=tiny_tokenizer.vocab_size, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    refuse(tmp_path, "is of type 'distilbert', wanted 'bert'")
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": data["vocab_size"], **TINY_SHAPE}))
    refuse(tmp_path, r"lacks \d+ encoder tensors, e\.g\. embeddings")  # weights of another architecture


def test_weights_of_another_shape_are_refused(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_bert(tmp_path, tiny_tokenizer, tiny_tokenizer.vocab_size)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"intermediate_size": 96}))
    refuse(tmp_path, "cannot be loaded")


def test_a_typing_error_is_not_called_a_bert(tiny_teacher: Path) -> None:
    with pytest.raises(
        UserError, match=r"'runs/pretain' is no folder here .* if it is a full-precision BERT on the hub"
    ):
        open_source("runs/pretain", None)
    with pytest.raises(UserError, match=r"'runs/pretain' is no folder here .* name a method for it"):
        open_stage("s", StageConfig(), "runs/pretain")
    with pytest.raises(UserError, match="is a full-precision BERT; pass --method baseline"):
        open_source(str(tiny_teacher), None)


def test_rows_of_the_word_table_without_a_token_are_cut_off(
    tiny_tokenizer: Tokenizer, pair_task: TaskData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = tiny_tokenizer.vocab_size
    padded = write_bert(tmp_path / "padded", tiny_tokenizer, size + 6)
    source = open_source(str(padded), "baseline")
    assert "6 rows of its word table have no token" in capsys.readouterr().err
    table = BertModel.from_pretrained(padded).embeddings.word_embeddings.weight
    assert torch.equal(source.tensors["bitbert.embeddings.word_embeddings.weight"], table[:size])
    finetune(source, pair_task, RECIPE.model_copy(update={"epochs": 1}), [0], tmp_path / "out", model_name="m")
    assert load_packed(tmp_path / "out" / "seed-0" / "packed").config.vocab_size == size
    for method in ("full-precision", "bit"):
        model = open_stage("s", StageConfig(method=method), str(padded)).build(pair_task.head, 0)
        assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == size


def test_other_tokenizers_are_refused_before_any_training(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    size = tiny_tokenizer.vocab_size
    refuse(write_bert(tmp_path / "small", tiny_tokenizer, size - 2), f"has {size} tokens, .* {size - 2} rows")
    for rows in (size - 2, size + 2):
        folder = tmp_path / str(rows)
        tiny_model("bipft-b", vocab_size=rows).save_pretrained(folder)
        shutil.copy(tmp_path / "small" / "tokenizer.json", folder)
        with pytest.raises(UserError, match=f"has {size} tokens, the model's word table {rows} rows"):
            open_source(str(folder), None)


@pytest.mark.parametrize("damage", BERT_DAMAGE)
def test_a_damaged_bert_is_named_in_a_sentence(
    damage: Callable[[Path], None], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_bert(tmp_path, tiny_tokenizer, tiny_tokenizer.vocab_size)
    damage(tmp_path)
    refuse(tmp_path, r"cannot be loaded: .+; give a folder|holds list, wanted an object")
