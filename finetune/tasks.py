"""The GLUE tasks as data: files, columns, labels, metrics and the published number of epochs."""

from dataclasses import dataclass

from bitbert.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Task:
    """One task in the official file format.

    Attributes:
        folder: sub-folder of the GLUE folder.
        text_columns: header names of one or two text columns; column numbers in CoLA, which has no header.
        labels: label strings in class order; empty for regression.
        metrics: names in ``finetune.metrics.METRICS``; the first one selects the epoch.
        epochs: of BiPFT's recipe; WNLI is not in it and gets RTE's.
        dev_files: evaluation files by name; the first one selects the epoch.
        skip_short_rows: the official QQP files hold a few rows cut off in the middle.
    """

    name: str
    folder: str
    text_columns: tuple[str, ...] | tuple[int, ...]
    label_column: str | int
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    epochs: int
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev.tsv"),)
    skip_short_rows: bool = False

    @property
    def has_header(self) -> bool:
        return isinstance(self.label_column, str)


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    task.name: task
    for task in (
        Task("cola", "CoLA", (3,), 1, _BINARY, ("matthews",), 50),
        Task("sst2", "SST-2", ("sentence",), "label", _BINARY, ("accuracy",), 10),
        Task("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, ("accuracy", "f1"), 20),
        Task("stsb", "STS-B", ("sentence1", "sentence2"), "score", (), ("pearson", "spearman"), 20),
        Task(
            "qqp",
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            _BINARY,
            ("accuracy", "f1"),
            6,
            skip_short_rows=True,
        ),
        Task(
            "mnli",
            "MNLI",
            ("sentence1", "sentence2"),
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            6,
            dev_files=(("dev_matched", "dev_matched.tsv"), ("dev_mismatched", "dev_mismatched.tsv")),
        ),
        Task("qnli", "QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",), 10),
        Task("rte", "RTE", ("sentence1", "sentence2"), "label", _ENTAILMENT, ("accuracy",), 20),
        Task("wnli", "WNLI", ("sentence1", "sentence2"), "label", _BINARY, ("accuracy",), 20),
    )
}


def find_task(name: str) -> Task:
    """The task named ``name`` (any case, with or without a dash).

    Raises:
        UserError: there is no such task.
    """
    key = name.lower().replace("-", "")
    if key not in TASKS:
        raise UserError(f"task {name!r} is not known{did_you_mean(key, TASKS)}; tasks: {', '.join(TASKS)}")
    return TASKS[key]
