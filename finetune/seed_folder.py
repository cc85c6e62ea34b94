"""The folder of one seed of one training: its tracker while it runs, and result.json, which says that it is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitbert.errors import UserError
from bitbert.files import read_json_object
from bitbert.tracking import Tracker, flatten

from .config import TrackingSection
from .train import SELECTION_SET, Trained

RESULT = "result.json"
"""Written last."""
_NAME = "model"
_ADDED = ("model_fields", "tokenizer_sha256", "head", "labels")
"""Keys that earlier results lack."""


def read_result(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a seed that is done, or None.

    Args:
        identity: what decided the training; it stands in the result. The model's name is recorded and not compared:
            the hash of its weights decides. Nor is what a result from before it was recorded lacks.

    Raises:
        UserError: the folder holds the result of another training.
    """
    if not (folder / RESULT).is_file():
        return None
    found = read_json_object(folder / RESULT, "finetuning result")
    lacking = {key for key in _ADDED if key not in found}
    compared = [key for key in identity if key != _NAME and key not in lacking]
    wanted, have = (flatten({key: values.get(key) for key in compared}) for values in (identity, found))
    changed = [key for key in {**wanted, **have} if wanted.get(key) != have.get(key)]
    if changed:
        raise UserError(
            f"{str(folder)!r} holds a result with another {changed[0]} ({have.get(changed[0])!r}); "
            "choose another --output, or remove the folder"
        )
    return found


@contextmanager
def track_seed(
    folder: Path, section: TrackingSection, run_name: str, seed: int, identity: dict[str, Any]
) -> Iterator[Tracker]:
    """A tracker of its own for the block, which says afterwards how the block ended."""
    tracker = Tracker(
        folder,
        mlflow_uri=section.mlflow_uri,
        experiment=section.experiment,
        run_name=run_name,
        parameters=flatten({**identity, "seed": seed}),
        resume_step=-1,  # a seed that was cut off starts again
    )
    try:
        yield tracker
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.close()


def describe_training(seed: int, trained: Trained) -> dict[str, Any]:
    """What every result says of the training itself."""
    return {
        "seed": seed,
        "epoch": trained.epoch,
        "step": trained.step,
        "scores": {name: values for name, values in trained.scores.items() if name != SELECTION_SET},
        "history": trained.history,
    }
