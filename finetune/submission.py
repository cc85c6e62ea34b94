"""Answers to GLUE's test sets, in the files that its server takes."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitbert.files import write_atomically, write_text_atomically

from .tasks import TASKS, GlueTask

FILES = tuple(part.submission for task in TASKS.values() for part in task.test)
"""The eleven files of a whole submission, without ``.tsv``."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def write_answers(path: Path, task: GlueTask, predictions: np.ndarray) -> None:
    """``index<TAB>prediction`` with the task's own label strings; scores of STS-B within 0 to 5."""
    if task.labels:
        answers = [task.labels[number] for number in predictions]
    else:
        answers = [f"{score:.3f}" for score in np.clip(predictions, 0, 5)]
    lines = ["index\tprediction", *(f"{index}\t{answer}" for index, answer in enumerate(answers))]
    write_text_atomically(path, "\n".join(lines) + "\n")


def zip_submission(path: Path, files: Mapping[str, Path]) -> list[str]:
    """Put the answers into one zip, the same bytes for the same answers; returns the files that are missing in it."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in FILES:
                if name in files:
                    entry = zipfile.ZipInfo(f"{name}.tsv", _ZIP_TIME)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, files[name].read_bytes())

    write_atomically(path, write)
    return [name for name in FILES if name not in files]
