"""Options that both doors of the room read."""

from pathlib import Path
from typing import TYPE_CHECKING

from bitbert.errors import UserError

if TYPE_CHECKING:
    from .data import TaskData


def read_tasks(
    names: str | None, glue_dir: Path | None, train: Path | None, evaluation: Path | None
) -> "list[TaskData]":
    """Every task that the options name, read and checked.

    Raises:
        UserError: the options contradict one another, or a file is wrong.
    """
    from .glue_files import read_glue_tasks
    from .hub import fetch_glue_tasks
    from .own_data import read_own_task
    from .tasks import find_tasks

    if names is not None and train is None and evaluation is None:
        tasks = find_tasks(names)
        return fetch_glue_tasks(tasks) if glue_dir is None else read_glue_tasks(tasks, glue_dir)
    if names is None and glue_dir is None and train is not None and evaluation is not None:
        return [read_own_task(train, evaluation)]
    raise UserError("give either --task (with --glue-dir, or from the hub), or both --train and --eval")


def parse_seeds(text: str) -> list[int]:
    """``--seeds`` as numbers.

    Raises:
        UserError: they are not different integers of at least 0.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r}, wanted integers separated by commas, e.g. 0,1,2") from error
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text!r}, wanted different integers of at least 0")
    return seeds
