"""GLUE's official files, one's own CSV, metrics against scikit-learn and scipy."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from bitbert.errors import UserError
from bitbert.finetune.data import batches, encode, read_csv_task, read_glue_task
from bitbert.finetune.metrics import METRICS
from bitbert.finetune.tasks import TASKS, find_task

# Rows of the official files (docs of the data folder say which are samples); labels seen in dev.
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
    task = read_glue_task(TASKS[name], data_folder / "glue")
    sets = [task.train, *task.evaluation.values()]
    if name in EXPECTED:
        assert tuple(len(examples) for examples in sets) == EXPECTED[name]
    assert len(sets) == (3 if name == "mnli" else 2)
    for examples in sets:
        assert all(examples.texts)
        assert (examples.second_texts is None) == (name in ("cola", "sst2"))
        if task.is_regression:
            assert examples.labels.dtype == np.float32
            assert 0 <= examples.labels.min() < examples.labels.max() <= 5
        else:
            assert set(examples.labels.tolist()) == set(range(len(task.labels)))


def test_first_rows_of_real_files(data_folder: Path) -> None:
    cola = read_glue_task(TASKS["cola"], data_folder / "glue").train
    assert (cola.texts[0], cola.labels[0]) == (
        "Our friends won't buy this analysis, let alone the next one we propose.",
        1,
    )
    rte = read_glue_task(TASKS["rte"], data_folder / "glue")
    assert (rte.train.second_texts[0], rte.labels[rte.train.labels[0]]) == (
        "Weapons of Mass Destruction Found in Iraq.",
        "not_entailment",
    )


def test_task_names() -> None:
    assert find_task("SST-2") is TASKS["sst2"]
    with pytest.raises(UserError, match="did you mean 'mrpc'"):
        find_task("mrcp")


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
        (
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
            "example 1: label 'maybe', wanted one of entailment, not_entailment",
        ),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\n", "row 2: 2 columns, wanted 4"),
    ],
)
def test_damaged_glue_files(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_glue_task(TASKS["rte"], write_rte(tmp_path, train))


def test_missing_glue_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no SST-2/"):
        read_glue_task(TASKS["sst2"], tmp_path)


def test_short_rows_of_qqp_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "QQP").mkdir()
    text = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\n1\t3\t4\tcut\n2\t5\t6\tc\td\t0\n"
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / "QQP" / file).write_text(text, encoding="utf-8")
    assert read_glue_task(TASKS["qqp"], tmp_path).train.texts == ["a", "c"]


def test_own_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"a, quoted",yes\nb,no\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("text,label\nc,yes\n", encoding="utf-8")
    task = read_csv_task(tmp_path / "a.csv", tmp_path / "b.csv", regression=False)
    assert (task.name, task.labels, task.train.texts, task.evaluation["eval"].labels.tolist()) == (
        "a",
        ("no", "yes"),
        ["a, quoted", "b"],
        [1],
    )
    (tmp_path / "c.csv").write_text("text_a,text_b,label\na,b,0.5\nc,d,2\n", encoding="utf-8")
    scores = read_csv_task(tmp_path / "c.csv", tmp_path / "c.csv", regression=True)
    assert scores.is_regression
    assert (scores.train.second_texts, scores.train.labels.tolist(), scores.metrics) == (
        ["b", "d"],
        [0.5, 2.0],
        ("pearson", "spearman"),
    )


@pytest.mark.parametrize(
    ("train", "evaluation", "regression", "message"),
    [
        ("text,label\na,yes\nb,no\n", "text,label\nc,maybe\n", False, "label 'maybe', wanted one of no, yes"),
        ("text,label\na,yes\n", "text,label\nc,yes\n", False, "one label only"),
        ("sentence,label\na,yes\n", "text,label\nc,yes\n", False, "wanted text and label"),
        ("text,label\n", "text,label\nc,yes\n", True, "holds no examples"),
        ("text,label\na,high\n", "text,label\nc,1\n", True, "score 'high', wanted a number"),
    ],
)
def test_bad_csv(tmp_path: Path, train: str, evaluation: str, regression: bool, message: str) -> None:
    (tmp_path / "a.csv").write_text(train, encoding="utf-8")
    (tmp_path / "b.csv").write_text(evaluation, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_csv_task(tmp_path / "a.csv", tmp_path / "b.csv", regression=regression)
    with pytest.raises(UserError, match="does not exist"):
        read_csv_task(tmp_path / "absent.csv", tmp_path / "b.csv", regression=regression)


def test_files_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff,yes\n")
    with pytest.raises(UserError, match="is not UTF-8 at byte 11"):
        read_csv_task(tmp_path / "a.csv", tmp_path / "a.csv", regression=False)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_the_libraries(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(0, 2, 50), random.integers(0, 2, 50)
    assert METRICS["accuracy"](predictions, labels) == pytest.approx(
        sklearn.metrics.accuracy_score(labels, predictions)
    )
    assert METRICS["f1"](predictions, labels) == pytest.approx(sklearn.metrics.f1_score(labels, predictions))
    assert METRICS["matthews"](predictions, labels) == pytest.approx(
        sklearn.metrics.matthews_corrcoef(labels, predictions)
    )
    scores, truth = random.integers(0, 9, 50) / 2, random.normal(size=50)  # with ties
    assert METRICS["pearson"](scores, truth) == pytest.approx(scipy.stats.pearsonr(scores, truth).statistic)
    assert METRICS["spearman"](scores, truth) == pytest.approx(scipy.stats.spearmanr(scores, truth).statistic)


def test_constant_predictions_score_zero() -> None:
    labels, constant = np.array([0, 1, 1]), np.zeros(3, int)
    assert [METRICS[name](constant, labels) for name in ("matthews", "pearson", "spearman", "f1")] == [
        0,
        0,
        0,
        0,
    ]


def test_batches_pad_to_their_own_longest(tiny_tokenizer) -> None:
    from bitbert.finetune.data import Examples

    examples = Examples(["river", "the old river", "king " * 40], ["queen", "king", "queen"], np.array([1, 0, 1]))
    encoded = encode(examples, tiny_tokenizer, 16)
    first, second = batches(encoded, examples.labels, np.array([2, 0, 1]), 2, tiny_tokenizer.pad_id)
    assert first["input_ids"].shape == (2, 16)
    assert second["input_ids"].shape == (1, len(encoded[1][0]))
    assert first["attention_mask"].sum(1).tolist() == [16, len(encoded[0][0])]
    assert first["labels"].tolist() == [1, 1]
    assert (first["input_ids"][1, len(encoded[0][0]) :] == tiny_tokenizer.pad_id).all()
