"""GLUE from the Hugging Face hub (``nyu-mll/glue``); the only module here that imports `datasets`."""

from typing import Any

from bitbert.errors import UserError

from .data import TaskData, size_caveat, text_examples
from .sequence import SequenceHead, TextExamples
from .tasks import GlueTask, Part

REPOSITORY = "nyu-mll/glue"


def fetch_glue_tasks(tasks: list[GlueTask]) -> list[TaskData]:
    """Download (or take from the cache) and check every task.

    Raises:
        UserError: the hub cannot be reached, or what it gave is not the task.
    """
    return [_fetch_task(task) for task in tasks]


def _fetch_task(task: GlueTask) -> TaskData:
    loaded: dict[str, Any] = {}
    caveats: dict[bool, list[str]] = {True: [], False: []}  # of labelled files, of test files

    def read(part: Part, *, labelled: bool) -> TextExamples:
        config, _, split = part.split.rpartition(":")
        config = config or task.name
        if config not in loaded:
            loaded[config] = _load(config)
        origin = f"{REPOSITORY} {config} {split}"
        if split not in loaded[config]:
            raise UserError(f"{origin} is not on the hub; splits: {', '.join(loaded[config])}; pass --glue-dir")
        examples = _examples(task, loaded[config][split], origin, labelled=labelled)
        caveats[labelled].extend(size_caveat(task, part, len(examples)))
        return examples

    train = read(task.train, labelled=True)
    evaluation = {part.name: read(part, labelled=True) for part in task.dev}
    test = {part.submission: read(part, labelled=False) for part in task.test}
    head = SequenceHead(task.labels, task.metrics)
    found = (tuple(caveats[True]), tuple(caveats[False]))
    return TaskData(task.name, task.title, head, train, evaluation, task.epochs, test, task, *found)


def _load(config: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(REPOSITORY, config)
    except Exception as error:  # offline, renamed, gated: one answer for the user
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{REPOSITORY} {config} could not be fetched from the Hugging Face hub ({reason}); "
            "pass --glue-dir, a folder with the official GLUE files"
        ) from error


def _examples(task: GlueTask, split: Any, origin: str, *, labelled: bool) -> TextExamples:
    names = task.hub_columns or task.text_columns
    missing = [name for name in (*names, "label") if name not in split.column_names]
    if missing:
        raise UserError(f"{origin} has no column {missing[0]!r}; columns: {split.column_names}; pass --glue-dir")
    columns = [list(split[name]) for name in names]
    if labelled:
        # The hub numbers classes in our order, so that a number is a class; -1 stands for a missing label.
        classes = dict(enumerate(task.labels))
        columns.append([str(classes.get(label, label) if task.labels else label) for label in split["label"]])
    return text_examples(list(zip(*columns, strict=True)), task.labels, origin, labelled=labelled)
