"""A tiny GLUE of made-up sentences in the official format, a tiny pair task, and models to finetune."""

from pathlib import Path

import pytest

from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.data import TaskData
from bitbert.finetune.own_data import read_own_task
from bitbert.finetune.tasks import TASKS, GlueTask
from bitbert.model.export import pack_model
from bitbert.packed import save_packed
from tests.conftest import WORDS, tiny_model

RECIPE = FinetuneConfig(epochs=2, batch_size=16, max_length=32, learning_rate=1e-3)


@pytest.fixture(scope="session")
def pair_task(tiny_shards: Path) -> TaskData:
    folder = tiny_shards / "pair_task"
    return read_own_task(folder / "train.csv", folder / "eval.csv")


@pytest.fixture(scope="session")
def saved_model(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining model as save_pretrained leaves it, in a folder that looks like a run's."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size).save_pretrained(folder / "final")
    tiny_tokenizer.save(folder / "final")
    return folder


@pytest.fixture(scope="session")
def packed_model(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    model = tiny_model("bipft-b", vocab_size=tiny_tokenizer.vocab_size)
    save_packed(folder, pack_model(model, tiny_tokenizer, max_length=32), "# card\n")
    return folder


@pytest.fixture(scope="session")
def tiny_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine tasks and AX in the official columns, a few rows each."""
    folder = tmp_path_factory.mktemp("glue")
    for task in TASKS.values():
        write_task(folder, task)
    return folder


def write_task(folder: Path, task: GlueTask, num_train: int = 16, num_dev: int = 6, num_test: int = 5) -> None:
    """Write the files of one task: every column of the official header that a reader looks at, and one it does not."""
    write_rows(folder / task.train.files[0], task, num_train, labelled=True)
    for part in task.dev:
        write_rows(folder / part.files[0], task, num_dev, labelled=True)
    for part in task.test:
        write_rows(folder / part.files[0], task, num_test, labelled=False)


def write_rows(path: Path, task: GlueTask, num_rows: int, *, labelled: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    has_header = isinstance(task.text_columns[0], str) or not labelled
    texts = [str(name) for name in (task.text_columns if labelled or not task.test_columns else task.test_columns)]
    lines = ["\t".join(["index", *texts, *([str(task.label_column)] if labelled else [])])] if has_header else []
    for row in range(num_rows):
        values = [f"the {WORDS[(row + place) % 20]} reads" for place in range(len(texts))]
        label = task.labels[row % len(task.labels)] if task.labels else f"{row % 6}.5"
        if has_header:
            lines.append("\t".join([str(row), *values, *([label] if labelled else [])]))
        else:  # CoLA: source, label, mark, sentence
            lines.append("\t".join(["made", label, "", *values]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
