"""Options that both doors of the room read."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bitbert.errors import UserError

from .config import FinetuneConfig, TaskSection

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


def refuse_keys_without_effect(
    recipe: FinetuneConfig, overrides: list[str] | None, tasks: Iterable[str], prefix: str = ""
) -> None:
    """Refuse ``epochs=1`` for a task to which the recipe gives epochs of its own: that number wins.

    Args:
        overrides: the ``key=value`` arguments that ``recipe`` was made with.
        tasks: names of the tasks to train on.
        prefix: what stands before the recipe's keys in ``overrides``.

    Raises:
        UserError: a key would change nothing for one of the tasks.
    """
    given = {override.partition("=")[0] for override in overrides or []}
    for name in tasks:
        section = recipe.tasks.get(name, TaskSection())
        for key in TaskSection.model_fields:
            own, general = getattr(section, key), getattr(recipe, key)
            if f"{prefix}{key}" in given and f"{prefix}tasks.{name}.{key}" not in given and own not in (None, general):
                raise UserError(
                    f"{prefix}{key}={general} changes nothing for {name}, whose {key} in the recipe is {own}; "
                    f"give {prefix}tasks.{name}.{key}={general}"
                )
