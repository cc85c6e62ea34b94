"""GLUE from a folder in the official format: tab-separated files, one folder a task."""

from pathlib import Path

from bitbert.errors import UserError

from .data import Row, TaskData, read_text, size_caveat, text_examples
from .sequence import SequenceHead, TextExamples
from .tasks import GlueTask, Part


def read_glue_tasks(tasks: list[GlueTask], folder: Path) -> list[TaskData]:
    """Read and check every file of every task, so that a wrong one is found before anything is trained.

    Test files may be absent: then there are no predictions for them.

    Raises:
        UserError: a folder or file is missing or empty, a column is unknown, or a label is wrong.
    """
    missing = [task.title for task in tasks if not (folder / task.title).is_dir()]
    if missing:
        raise UserError(
            f"GLUE folder {str(folder)!r} has no {', '.join(f'{title}/' for title in missing)}; give the folder that "
            f"holds {missing[0]}/train.tsv with --glue-dir, or name the tasks it has with --task"
        )
    return [_read_task(task, folder) for task in tasks]


def _read_task(task: GlueTask, folder: Path) -> TaskData:
    caveats: dict[bool, list[str]] = {True: [], False: []}  # of labelled files, of test files

    def read(part: Part, path: Path, *, labelled: bool) -> TextExamples:
        examples = _read_file(task, path, labelled=labelled)
        caveats[labelled].extend(size_caveat(task, part, len(examples)))
        return examples

    train = read(task.train, folder / task.train.files[0], labelled=True)
    evaluation = {part.name: read(part, folder / part.files[0], labelled=True) for part in task.dev}
    test = {}
    for part in task.test:
        path = next((folder / file for file in part.files if (folder / file).is_file()), None)
        if path is not None:
            test[part.submission] = read(part, path, labelled=False)
    head = SequenceHead(task.labels, task.metrics)
    found = (tuple(caveats[True]), tuple(caveats[False]))
    return TaskData(task.name, task.title, head, train, evaluation, task.epochs, test, task, *found)


def _read_file(task: GlueTask, path: Path, *, labelled: bool) -> TextExamples:
    """Tab-separated without quoting; every row of a test file is kept, since GLUE wants an answer to each."""
    texts = task.text_columns if labelled or not task.test_columns else task.test_columns
    wanted = (*texts, task.label_column) if labelled else texts
    rows = [line.rstrip("\r").split("\t") for line in read_text(path).split("\n") if line.strip()]
    has_header = isinstance(wanted[0], str)
    if has_header:
        header, rows = (rows[0] if rows else []), rows[1:]
        missing = [name for name in wanted if name not in header]
        if missing:
            raise UserError(
                f"{str(path)!r} has no column {missing[0]!r}; columns: {header}; "
                f"wanted the official {task.title} format"
            )
        columns = [header.index(str(name)) for name in wanted]
    else:
        columns = [int(number) for number in wanted]
    found: list[Row] = []
    for number, row in enumerate(rows, start=2 if has_header else 1):
        if len(row) <= max(columns):
            if task.skip_short_rows and labelled:
                continue
            raise UserError(
                f"{str(path)!r}, row {number}: {len(row)} columns, wanted {max(columns) + 1} or more; "
                "the file is damaged"
            )
        found.append(tuple(row[column] for column in columns))
    return text_examples(found, task.labels, path, labelled=labelled)
