"""The bi-encoder: how pairs are split, that padding says nothing, and transformers' own tools on it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from bitbert.errors import UserError
from bitbert.model.export import pack_model
from bitbert.model.pairs import pair_features, split_pairs
from bitbert.packed import save_packed
from bitbert.tokenizer import Tokenizer
from tests.conftest import tiny_model

CLS, SEP = 2, 3
PAIR = {"text": "the king reads", "text_pair": "a queen follows the river"}


def test_pairs_are_split_into_texts() -> None:
    ids = torch.tensor([[CLS, 10, 11, SEP, 20, SEP, 0], [CLS, 12, SEP, 21, 22, 23, SEP]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1] * 7])
    texts, found = split_pairs(ids, mask, types)
    assert texts.tolist() == [
        [CLS, 10, 11, SEP, 0],
        [CLS, 12, SEP, 0, 0],
        [CLS, 20, SEP, 0, 0],
        [CLS, 21, 22, 23, SEP],
    ]
    assert found.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1] * 5]


def test_no_mask_means_no_padding() -> None:
    ids, types = torch.tensor([[CLS, 10, SEP, 20, SEP]]), torch.tensor([[0, 0, 0, 1, 1]])
    texts, mask = split_pairs(ids, None, types)
    assert texts.tolist() == [[CLS, 10, SEP], [CLS, 20, SEP]]
    assert mask.min() == 1


@pytest.mark.parametrize("types", [None, [[0, 0, 0, 1], [0, 0, 0, 0]], [[0, 0, 1, 1], [1, 1, 1, 1]]])
def test_a_row_without_a_second_text_is_refused(types: list[list[int]] | None) -> None:
    ids = torch.full((2, 4), 7)
    with pytest.raises(UserError, match="a row without a second text, wanted token_type_ids 0 and then 1"):
        split_pairs(ids, None, None if types is None else torch.tensor(types))


def test_features_are_those_of_the_formula() -> None:
    states = torch.tensor([[[3.0, 4.0], [9.0, 9.0]], [[0.0, 2.0], [0.0, 4.0]]])
    mask = torch.tensor([[1, 0], [1, 1]])
    u, v = torch.tensor([3.0, 4.0]) / 12.5**0.5, torch.tensor([0.0, 3.0]) / 4.5**0.5
    expected = torch.cat([u, v, (u - v).abs(), u * v])
    torch.testing.assert_close(pair_features(states, mask, 0.0), expected[None])


@pytest.mark.parametrize("method", ["bitbert", "bibert", "ternarybert"])
def test_padding_and_neighbours_change_nothing(method: str) -> None:
    model = tiny_model(
        method, "BitBertForSequenceClassification", vocab_size=40, num_labels=3, pairs="bi_encoder"
    ).double()
    ids = torch.randint(5, 40, (2, 14))
    ids[:, 0] = CLS
    types = (torch.arange(14) >= torch.tensor([[6], [4]])).long()
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.no_grad():
        together = model(ids, mask, types * mask)
        alone = [model(ids[:1], None, types[:1]).logits, model(ids[1:, :9], None, types[1:, :9]).logits]
    if method != "ternarybert":  # its steps are those of each batch
        torch.testing.assert_close(together.logits, torch.cat(alone), atol=1e-9, rtol=0)
    assert together.logits.shape == (2, 3)


def test_both_texts_and_the_head_learn() -> None:
    model = tiny_model(
        "bitbert", "BitBertForSequenceClassification", vocab_size=40, num_labels=2, pairs="bi_encoder"
    ).train()
    ids = torch.tensor([[CLS, 10, 11, SEP, 20, 21, 22, SEP]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    model(ids, None, types, labels=torch.tensor([1])).loss.backward()
    rows = model.bitbert.embeddings.word_embeddings.weight.grad.abs().sum(dim=1)
    assert set(torch.nonzero(rows).flatten().tolist()) == {CLS, SEP, 10, 11, 20, 21, 22}
    assert (model.classifier.weight.grad.view(2, 4, -1).abs().sum(dim=(0, 2)) > 0).all()


def test_a_graph_serves_texts_of_other_lengths() -> None:
    """What was longest while the graph was made must not cut what comes later."""
    model = tiny_model("bitbert", "BitBertForSequenceClassification", vocab_size=40, num_labels=2, pairs="bi_encoder")
    ids = torch.randint(5, 40, (2, 14))
    mask = torch.ones_like(ids)
    even, skewed = ((torch.arange(14) >= torch.tensor(firsts)[:, None]).long() for firsts in ((7, 7), (2, 12)))
    traced = torch.jit.trace(model, (ids, mask, even), strict=False)
    exported = torch.export.export(model, (ids, mask, even)).module()
    with torch.no_grad():
        expected = model(ids, mask, skewed).logits
        for graph in (traced, exported):
            found = graph(ids, mask, skewed)
            torch.testing.assert_close(found["logits"] if isinstance(found, dict) else found.logits, expected)


def test_pipelines_and_automatic_classes_know_it(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(
        "bitbert",
        "BitBertForSequenceClassification",
        vocab_size=tiny_tokenizer.vocab_size,
        num_labels=2,
        pairs="bi_encoder",
    )
    model.save_pretrained(tmp_path / "latent")
    tiny_tokenizer.save(tmp_path / "latent")
    save_packed(tmp_path / "packed", pack_model(model, tiny_tokenizer, max_length=32), "# card\n")
    ids, types = tiny_tokenizer.encode_pair(*PAIR.values(), 32)
    with torch.no_grad():
        expected = model(torch.tensor([ids]), None, torch.tensor([types])).logits.softmax(-1).max().item()
    for name in ("latent", "packed"):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert loaded.config.pairs == "bi_encoder"
        answer = pipeline("text-classification", model=str(tmp_path / name))(PAIR)
        assert answer["score"] == pytest.approx(expected, abs=1e-4)
