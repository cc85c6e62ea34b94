"""GLUE's official files, and what is wrong with a file, before anything is trained."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bitbert.errors import UserError
from bitbert.finetune.batches import batches
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.sequence import TextExamples
from bitbert.finetune.tasks import TASKS, find_tasks
from bitbert.tokenizer import Tokenizer

# Rows of train and dev of the official files in the data folder; its notes say which files are samples.
EXPECTED = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "rte": (2490, 277),
    "wnli": (635, 71),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_glue_task_reads(data_folder: Path, name: str) -> None:
    (task,) = read_glue_tasks([TASKS[name]], data_folder / "glue")
    sets = [task.train, *task.evaluation.values()]
    if name in EXPECTED:
        assert tuple(len(examples) for examples in sets) == EXPECTED[name]
    assert len(sets) == (3 if name == "mnli" else 2)
    for examples in sets:
        assert all(examples.texts)
        assert (examples.second_texts is None) == (name in ("cola", "sst2"))
        if not task.head.labels:
            assert examples.labels.dtype == np.float32
            assert 0 <= examples.labels.min() < examples.labels.max() <= 5
        else:
            assert set(examples.labels.tolist()) == set(range(len(task.head.labels)))
    for examples in task.test.values():
        assert examples.labels is None
        assert all(examples.texts)


def test_files_that_are_not_glues_are_named(data_folder: Path) -> None:
    caveats = {task.name: task.caveats for task in read_glue_tasks(find_tasks("all"), data_folder / "glue")}
    assert {name for name, found in caveats.items() if found} == {"qqp", "qnli", "mnli"}
    assert "QQP train has 18,496 rows, the official file has 363,870" in caveats["qqp"]
    assert len(caveats["mnli"]) == 3


def test_first_rows_of_real_files(data_folder: Path) -> None:
    cola, rte = read_glue_tasks(find_tasks("cola,rte"), data_folder / "glue")
    assert (cola.train.texts[0], cola.train.labels[0]) == (
        "Our friends won't buy this analysis, let alone the next one we propose.",
        1,
    )
    assert cola.test["CoLA"].texts[0] == "Bill whistled past the house."
    assert (rte.train.second_texts[0], rte.head.labels[rte.train.labels[0]]) == (
        "Weapons of Mass Destruction Found in Iraq.",
        "not_entailment",
    )


def test_task_names() -> None:
    assert find_tasks("SST-2") == [TASKS["sst2"]]
    assert find_tasks("rte, MRPC") == [TASKS["rte"], TASKS["mrpc"]]
    assert find_tasks("all") == list(TASKS.values())
    for names, message in (
        ("mrcp", "did you mean 'mrpc'"),
        ("rte,rte", "names a task twice"),
        ("ax", "--task mnli answers it"),
    ):
        with pytest.raises(UserError, match=message):
            find_tasks(names)


def test_tiny_glue_has_every_set(tiny_glue: Path) -> None:
    tasks = read_glue_tasks(find_tasks("all"), tiny_glue)
    assert [name for task in tasks for name in task.test] == [
        *("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "AX", "QNLI", "RTE", "WNLI")
    ]
    assert all(len(task.caveats) == 1 + len(task.evaluation) for task in tasks)  # none is the official file
    assert all(len(task.test_caveats) == len(task.test) for task in tasks)


def write_rte(folder: Path, train: str, dev: str = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n") -> Path:
    (folder / "RTE").mkdir()
    (folder / "RTE" / "train.tsv").write_text(train, encoding="utf-8")
    (folder / "RTE" / "dev.tsv").write_text(dev, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", "has no column 'sentence1'"),
        ("index\tsentence1\tsentence2\tlabel\n", "holds no examples"),
        ("index\tsentence1\tsentence2\n0\ta\tb\n", "has no column 'label'"),
        ("index\tsentence1\tsentence2\tlabel\n0\t\t \tentailment\n", "example 1: the text is empty"),
        (
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
            "example 1: label 'maybe', wanted one of entailment, not_entailment",
        ),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\n", "row 2: 2 columns, wanted 4"),
    ],
)
def test_damaged_glue_files(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_glue_tasks(find_tasks("rte"), write_rte(tmp_path, train))


def test_missing_glue_folders_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    with pytest.raises(UserError, match=r"has no SST-2/, MRPC/; .* name the tasks it has"):
        read_glue_tasks(find_tasks("sst2,rte,mrpc"), tmp_path)


def test_short_rows_of_qqp_are_skipped_in_training_but_not_in_a_test_set(tmp_path: Path) -> None:
    (tmp_path / "QQP").mkdir()
    text = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\n1\t3\t4\tcut\n2\t5\t6\tc\td\t0\n"
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / "QQP" / file).write_text(text, encoding="utf-8")
    (task,) = read_glue_tasks(find_tasks("qqp"), tmp_path)
    assert task.train.texts == ["a", "c"]
    (tmp_path / "QQP" / "test.tsv").write_text("id\tquestion1\tquestion2\n0\ta\tb\n1\tcut\n", encoding="utf-8")
    with pytest.raises(UserError, match="row 3: 2 columns"):
        read_glue_tasks(find_tasks("qqp"), tmp_path)


def test_fingerprint_follows_texts_and_labels(tiny_glue: Path) -> None:
    (task,) = read_glue_tasks(find_tasks("rte"), tiny_glue)
    assert task.fingerprint == read_glue_tasks(find_tasks("rte"), tiny_glue)[0].fingerprint
    labels = task.train.labels.copy()
    labels[-1] = 1 - labels[-1]
    changed = TextExamples(task.train.texts, task.train.second_texts, labels)
    assert dataclasses.replace(task, train=changed).fingerprint != task.fingerprint


def test_batches_pad_to_their_longest_row(tiny_glue: Path, tiny_tokenizer: Tokenizer) -> None:
    (task,) = read_glue_tasks(find_tasks("rte"), tiny_glue)
    examples = TextExamples(["the king", "a river near the old bridge"], ["the queen", "winter"], np.array([1, 0]))
    features = task.head.encode(examples, tiny_tokenizer, 32)
    first, second = (feature.input_ids for feature in features)
    (batch,) = batches(features, np.array([1, 0]), 8, tiny_tokenizer.pad_id, task.head)
    assert batch["input_ids"].tolist() == [second, first + [tiny_tokenizer.pad_id] * (len(second) - len(first))]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(second), len(first)]
    assert batch["labels"].tolist() == [0, 1]
    assert task.head.encode(examples, tiny_tokenizer, 8)[1].input_ids[-1] == tiny_tokenizer.sep_id
