"""transformers' own tools on our models, unchanged: Trainer, pipeline, AutoTokenizer."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from bitbert.errors import UserError
from bitbert.model import BitBertTokenizer
from bitbert.model.export import pack_model
from bitbert.packed import save_packed
from bitbert.tokenizer import Tokenizer
from tests.conftest import tiny_model

TEXTS = ["the king reads", "a quiet river near the old bridge", "the queen", "summer and winter"]


@pytest.fixture
def saved(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_auto_tokenizer_gives_our_ids(saved: Path, tiny_tokenizer: Tokenizer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert isinstance(tokenizer, BitBertTokenizer)
    for first, second in ((TEXTS[0], None), (TEXTS[1], TEXTS[2])):
        found = tokenizer(first, second)
        expected = tiny_tokenizer.encode_pair(first, second, 48)
        assert (found["input_ids"], found["token_type_ids"]) == expected
    assert (tokenizer.pad_token_id, tokenizer.mask_token) == (tiny_tokenizer.pad_id, "[MASK]")
    tokenizer.save_pretrained(saved.parent / "again")
    again = AutoTokenizer.from_pretrained(saved.parent / "again")
    assert again(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


def test_long_texts_are_cut_to_what_the_model_takes(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    positions = AutoConfig.from_pretrained(saved).max_position_embeddings
    assert tokenizer.model_max_length == positions
    classify = pipeline("text-classification", model=str(saved))
    assert classify("river " * 300, truncation=True)[0]["score"] > 0
    tokenizer.model_max_length = 7
    tokenizer.save_pretrained(saved)
    assert AutoTokenizer.from_pretrained(saved).model_max_length == 7


def test_auto_tokenizer_says_that_sentencepiece_is_not_for_it() -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        BitBertTokenizer.convert_to_native_format()


def train(model: torch.nn.Module, rows: list[dict], collator: object, folder: Path) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer.train()
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert any(name.endswith("query.weight") for name in moved)  # the latent weights learn, not only the head
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(str(folder / "trained"))
    return trainer


def test_trainer_then_text_classification(saved: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    names = {0: "calm", 1: "lively"}
    model = tiny_model("bipft-b", "BitBertForSequenceClassification", vocab_size=len(tokenizer), id2label=names)
    rows = [{**tokenizer(text), "label": number % 2} for number, text in enumerate(TEXTS)]
    train(model, rows, DataCollatorWithPadding(tokenizer), tmp_path)
    tokenizer.save_pretrained(tmp_path / "trained")
    answer = pipeline("text-classification", model=str(tmp_path / "trained"))(TEXTS[0])
    with torch.no_grad():
        expected = model.eval()(torch.tensor([rows[0]["input_ids"]])).logits.softmax(-1)[0]
    assert answer[0]["label"] == names[int(expected.argmax())]
    assert answer[0]["score"] == pytest.approx(float(expected.max()), abs=1e-5)


def test_trainer_then_token_classification(saved: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = tiny_model("bipft-b", "BitBertForTokenClassification", vocab_size=len(tokenizer), num_labels=3)
    rows = [tokenizer(text) for text in TEXTS]
    rows = [{**row, "labels": [-100, *[1] * (len(row["input_ids"]) - 2), -100]} for row in rows]
    train(model, rows, DataCollatorForTokenClassification(tokenizer), tmp_path)
    tokenizer.save_pretrained(tmp_path / "trained")
    answer = pipeline("token-classification", model=str(tmp_path / "trained"), ignore_labels=[])(TEXTS[0])
    assert [piece["word"] for piece in answer] == ["the", "king", "reads"]


def test_trainer_on_question_answering(saved: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = tiny_model("bipft-b", "BitBertForQuestionAnswering", vocab_size=len(tokenizer))
    rows = [{**tokenizer(text, "the river"), "start_positions": 1, "end_positions": 2} for text in TEXTS]
    train(model, rows, DataCollatorWithPadding(tokenizer), tmp_path)


def test_pipelines_from_a_packed_folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(
        "bipft-b", "BitBertForSequenceClassification", vocab_size=tiny_tokenizer.vocab_size, num_labels=2
    )
    save_packed(tmp_path / "packed", pack_model(model, tiny_tokenizer, max_length=32), "# card\n")
    answer = pipeline("text-classification", model=str(tmp_path / "packed"))(TEXTS[0])
    ids, _ = tiny_tokenizer.encode_pair(TEXTS[0], None, 32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.softmax(-1).max().item()
    assert answer[0]["score"] == pytest.approx(expected, abs=1e-4)
