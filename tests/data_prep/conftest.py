"""A small corpus and vocabulary of our own, and builds of it."""

import hashlib
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitbert.data_prep.config import DataConfig
from bitbert.data_prep.wordpiece import learn_vocabulary
from bitbert.files import write_text_atomically
from bitbert.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("BITBERT_DATA", REPOSITORY.parent / "shared" / "data"))
WORDS = re.findall(
    r"\w+",
    "river mountain castle garden window market summer winter engine harbour music letter bridge forest village king "
    "queen doctor teacher sailor reads builds paints crosses follows finds keeps sells leaves opens the a",
)


def make_documents(count: int, seed: int = 0, sentences: int = 8) -> list[str]:
    """Documents of made-up sentences; no two are equal."""
    stream = random.Random(seed)
    documents = []
    for number in range(count):
        lines = [
            " ".join(stream.choices(WORDS, k=stream.randint(3, 12))).capitalize() + "."
            for _ in range(stream.randint(1, 2 * sentences))
        ]
        documents.append(f"Document {seed} {number} of the corpus begins here. " + " ".join(lines))
    return documents


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def tree_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file below ``folder``; config.yaml names the output folder and is left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "config.yaml")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small WordPiece vocabulary: all ASCII characters, WORDS, and parts of them."""
    printable = [chr(code) for code in range(33, 127)]
    words = dict.fromkeys([*WORDS, "document", "corpus", "begins", "here"], 50) | dict.fromkeys(printable, 1)
    words["abcdefghijklmnopqrstuvwxyz0123456789"] = 1  # each of them inside of a word, too
    tokens = learn_vocabulary(words, special_tokens=SPECIAL_TOKENS, vocab_size=400, min_frequency=2)
    folder = tmp_path_factory.mktemp("vocabulary")
    write_text_atomically(folder / "vocab.txt", "".join(f"{token}\n" for token in tokens))
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return load_tokenizer(str(vocabulary))


@pytest.fixture
def make_config(tmp_path: Path, vocabulary: Path) -> Callable[..., DataConfig]:
    """Config of a small build into tmp_path / "shards"; ``path`` or ``sources`` say of what, keywords change it."""

    def make(path: Path | None = None, **changes: Any) -> DataConfig:
        settings: dict[str, Any] = {
            "output": str(tmp_path / "shards"),
            "sources": [{"path": str(path)}],
            "tokenizer": str(vocabulary),
            "max_length": 48,
            "heldout_fraction": 0.2,
            "rows_per_shard": 120,
        }
        return DataConfig.model_validate(settings | changes)

    return make


@pytest.fixture
def data_folder() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}; set BITBERT_DATA to the folder with corpus/ and vocab/")
    return DATA
