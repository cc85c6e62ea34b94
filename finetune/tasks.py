"""The GLUE tasks as data: files, columns, labels, metrics, official sizes and the published number of epochs."""

from dataclasses import dataclass
from typing import TypedDict

from bitbert.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Part:
    """One file of a task.

    Attributes:
        name: what scores call it.
        files: where it lies below the GLUE folder; the first one that exists is read.
        split: its name on the Hugging Face hub, after ``config:`` where that is another data set's.
        rows: the official number of rows, or the lowest and the highest where releases differ.
        submission: for a test set, the file name that GLUE's server wants, without ``.tsv``.
    """

    name: str
    files: tuple[str, ...]
    split: str
    rows: tuple[int, int]
    submission: str = ""


@dataclass(frozen=True)
class GlueTask:
    """One task in the official file format.

    Attributes:
        title: GLUE's name, which is also its folder's.
        text_columns: header names of one or two text columns; column numbers in CoLA, whose files have no header.
        labels: label strings in class order; empty for regression.
        metrics: names in ``finetune.metrics.METRICS``; the first one selects the epoch.
        published: the metrics whose mean stands in the published tables.
        epochs: of BiPFT's recipe; WNLI is not in it and gets RTE's.
        dev: evaluation parts; the first one selects the epoch.
        test_columns: text columns of the test files, where they differ.
        hub_columns: text columns on the hub, where they differ.
        skip_short_rows: the official QQP files hold a few rows cut off in the middle.
    """

    name: str
    title: str
    text_columns: tuple[str, ...] | tuple[int, ...]
    label_column: str | int
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    published: tuple[str, ...]
    epochs: int
    train: Part
    dev: tuple[Part, ...]
    test: tuple[Part, ...]
    test_columns: tuple[str, ...] = ()
    hub_columns: tuple[str, ...] = ()
    skip_short_rows: bool = False


class Parts(TypedDict):
    """The fields of a task that name its files."""

    train: Part
    dev: tuple[Part, ...]
    test: tuple[Part, ...]


def _parts(title: str, train: int | tuple[int, int], dev: int, test: int) -> Parts:
    """Parts of a task with one dev and one test file."""
    low, high = train if isinstance(train, tuple) else (train, train)
    return {
        "train": Part("train", (f"{title}/train.tsv",), "train", (low, high)),
        "dev": (Part("dev", (f"{title}/dev.tsv",), "validation", (dev, dev)),),
        "test": (Part("test", (f"{title}/test.tsv",), "test", (test, test), title),),
    }


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
_MNLI: Parts = {
    "train": Part("train", ("MNLI/train.tsv",), "train", (392702, 392702)),
    "dev": (
        Part("dev_matched", ("MNLI/dev_matched.tsv",), "validation_matched", (9815, 9815)),
        Part("dev_mismatched", ("MNLI/dev_mismatched.tsv",), "validation_mismatched", (9832, 9832)),
    ),
    "test": (
        Part("test_matched", ("MNLI/test_matched.tsv",), "test_matched", (9796, 9796), "MNLI-m"),
        Part("test_mismatched", ("MNLI/test_mismatched.tsv",), "test_mismatched", (9847, 9847), "MNLI-mm"),
        # The diagnostic set has no training data of its own: MNLI's model answers it.
        Part(
            "diagnostic", ("AX/AX.tsv", "AX/diagnostic.tsv", "diagnostic/diagnostic.tsv"), "ax:test", (1104,) * 2, "AX"
        ),
    ),
}

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            *("cola", "CoLA", (3,), 1, _BINARY, ("matthews",), ("matthews",), 50),
            **_parts("CoLA", 8551, 1043, 1063),
            test_columns=("sentence",),
            hub_columns=("sentence",),
        ),
        GlueTask(
            *("sst2", "SST-2", ("sentence",), "label", _BINARY, ("accuracy",), ("accuracy",), 10),
            **_parts("SST-2", 67349, 872, 1821),
        ),
        GlueTask(
            *("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, ("accuracy", "f1"), ("accuracy",), 20),
            **_parts("MRPC", 3668, 408, 1725),
            hub_columns=_SENTENCES,
        ),
        GlueTask(
            *("stsb", "STS-B", _SENTENCES, "score", (), ("pearson", "spearman"), ("pearson", "spearman"), 20),
            **_parts("STS-B", 5749, 1500, 1379),
        ),
        GlueTask(
            *("qqp", "QQP", ("question1", "question2"), "is_duplicate", _BINARY, ("accuracy", "f1"), ("accuracy",), 6),
            **_parts("QQP", (363846, 363870), 40430, 390965),
            skip_short_rows=True,
        ),
        GlueTask(
            *("mnli", "MNLI", _SENTENCES, "gold_label", ("entailment", "neutral", "contradiction")),
            *(("accuracy",), ("accuracy",), 6),
            **_MNLI,
            hub_columns=("premise", "hypothesis"),
        ),
        GlueTask(
            *("qnli", "QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",), ("accuracy",), 10),
            **_parts("QNLI", 104743, 5463, 5463),
        ),
        GlueTask(
            *("rte", "RTE", _SENTENCES, "label", _ENTAILMENT, ("accuracy",), ("accuracy",), 20),
            **_parts("RTE", 2490, 277, 3000),
        ),
        GlueTask(
            *("wnli", "WNLI", _SENTENCES, "label", _BINARY, ("accuracy",), ("accuracy",), 20),
            **_parts("WNLI", 635, 71, 146),
        ),
    )
}

AVERAGED_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
"""The tasks of both averages in use; WNLI is in neither."""


def find_tasks(names: str) -> list[GlueTask]:
    """The tasks of ``names``: ``all``, or names separated by commas, in any case, with or without dashes.

    Raises:
        UserError: there is no such task, or one is named twice.
    """
    if names.lower() == "all":
        return list(TASKS.values())
    found = [_find_task(name) for name in names.split(",")]
    if len({task.name for task in found}) != len(found):
        raise UserError(f"--task {names!r} names a task twice; name each once")
    return found


def _find_task(name: str) -> GlueTask:
    key = name.strip().lower().replace("-", "")
    if key == "ax":
        raise UserError("task 'ax' has no training data: --task mnli answers it where AX/AX.tsv is in the GLUE folder")
    if key not in TASKS:
        raise UserError(
            f"task {name!r} is not known{did_you_mean(key, TASKS)}; tasks: {', '.join(TASKS)}, or all of them: all"
        )
    return TASKS[key]
