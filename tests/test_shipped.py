"""The checkpoints that this version ships: whole, by name, without a vocabulary of others, and of use."""

from pathlib import Path

import numpy as np
import pytest

from bitbert.packed import load_packed, recipe_of
from bitbert.released import FOLDER, released_names
from bitbert.runtime import Runtime
from bitbert.runtime.info import describe_model
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", released_names())
def test_it_is_whole_small_and_has_its_card(name: str) -> None:
    config = load_packed(name).config  # checks every hash
    files = {file.name: file.stat().st_size for file in (FOLDER / name).iterdir()}
    expected = {"README.md", "SHA256SUMS", "config.json", "model.safetensors", "tokenizer.reference.json"}
    assert set(files) == (expected | {"finetune.yaml"} if config.head == "nsp" else expected)
    assert sum(files.values()) < 4.5e6
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    for section in ("## Use", "## Data and licences", "## Recipe", "## Results", "## Limits"):
        assert section in card
    for key, value in describe_model(config):
        assert f"- {key}: {value}\n" in card
    assert str(Path.home()) not in card


def test_what_is_there_to_be_finetuned_brings_the_recipe_of_the_docs() -> None:
    quick = REPOSITORY / "configs" / "finetune" / "quick.yaml"
    recipes = {name: recipe_of(name) for name in released_names()}
    brought = {name: path.read_text(encoding="utf-8") for name, path in recipes.items() if path is not None}
    assert brought == {"bitbert-l6-h384": quick.read_text(encoding="utf-8")}


def test_texts_of_like_meaning_are_near() -> None:
    model = Runtime.load("bitbert-l6-h384")
    texts = ["A man is playing a guitar.", "Someone plays the guitar.", "The stock market fell sharply on Monday."]
    vectors = model.encode(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near, *far = vectors[0] @ vectors[1], vectors[0] @ vectors[2], vectors[1] @ vectors[2]
    assert near > max(far) + 0.1


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a gripping and moving film", "positive"),
        ("one of the best performances of the year", "positive"),
        ("dull, overlong and poorly acted", "negative"),
        ("a waste of time", "negative"),
    ],
)
def test_plain_sentiment_is_told(text: str, label: str) -> None:
    assert Runtime.load("bitbert-l6-h384-sst2").classify([text])[0].label == label


def test_like_meaning_has_a_high_score() -> None:
    model = Runtime.load("bitbert-l6-h384-stsb")  # of 0 to 5
    guitar = "A man is playing a guitar."
    pairs = [(guitar, "Someone plays the guitar."), (guitar, "The stock market fell sharply on Monday.")]
    like, unlike = (answer.score for answer in model.classify(pairs))
    assert like is not None
    assert unlike is not None
    assert like > 3 > 1.5 > unlike
